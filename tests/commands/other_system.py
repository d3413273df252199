"""Takes away what other systems lack, in every process that has this folder on PYTHONPATH, before anything is imported.

It stands for Windows, which lacks the most. What it cannot stand for: paths with drives, and files that are open.
"""

import errno
import fcntl
import multiprocessing
import multiprocessing.context as contexts
import os
import shutil
import signal
import sys
import warnings

NO_FUNCTIONS = (
    *("sched_getaffinity", "sched_setaffinity", "fork", "forkpty", "getuid", "geteuid", "sysconf"),
    *("killpg", "setsid", "mkfifo", "nice", "getloadavg", "posix_fadvise", "O_NOFOLLOW", "O_DIRECTORY"),
)
NO_SIGNALS = ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "pthread_sigmask", "setitimer")
NO_MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "multiprocessing.forkserver", "multiprocessing.popen_fork")
NO_FOLDERS = ("/proc", "/sys")
stat, readlink, fsync = os.stat, os.readlink, os.fsync


def refuse(event: str, arguments: tuple) -> None:
    if event != "open" or not isinstance(arguments[0], (str, os.PathLike)):
        return
    path, mode, _ = arguments
    require_other_system(path)
    if mode is None and os.path.isdir(path):  # noqa: PTH112  # of os.open
        raise PermissionError(errno.EACCES, "a folder cannot be opened", path)


def require_other_system(path: object) -> None:
    if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(NO_FOLDERS):
        raise FileNotFoundError(errno.ENOENT, "there is no such folder here", path)


def stat_elsewhere(path, *arguments, **options):
    require_other_system(path)
    return stat(path, *arguments, **options)


def readlink_elsewhere(path, *arguments, **options):
    require_other_system(path)
    return readlink(path, *arguments, **options)


def fsync_elsewhere(descriptor):
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "only what is open for writing can be flushed")
    fsync(descriptor)


def symlink_elsewhere(*_, **__):
    raise OSError(errno.EPERM, "links need a privilege")


for module, names in ((os, NO_FUNCTIONS), (signal, NO_SIGNALS)):
    for name in names:
        delattr(module, name)
for name in ("ForkContext", "ForkProcess", "ForkServerContext", "ForkServerProcess"):
    delattr(contexts, name)
for name in ("fork", "forkserver"):
    del vars(contexts)["_concrete_contexts"][name]
multiprocessing.get_all_start_methods = lambda: ["spawn"]
multiprocessing.set_start_method("spawn")
for name in NO_MODULES[:-1]:
    sys.modules[name] = None
os.stat, os.readlink, os.fsync, os.symlink = stat_elsewhere, readlink_elsewhere, fsync_elsewhere, symlink_elsewhere
vars(shutil)["_use_fd_functions"] = False  # it opens folders
sys.addaudithook(refuse)
warnings.filterwarnings("ignore", category=EncodingWarning)
warnings.filterwarnings("error", category=EncodingWarning, module=r"diveparse\.")
