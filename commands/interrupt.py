"""Ctrl-C without a traceback, from the first moment of a command. So this file imports nothing that takes time."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130  # the exit code of shells for a command that Ctrl-C ended

if_stopped = ""  # how to go on, once the command is known
_is_stopping = False


def install() -> None:
    """Handle Ctrl-C, unless the process was started to ignore it, as a shell's background jobs are."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)
        sys.unraisablehook = _leave_if_swallowed


def ignore() -> None:
    """From here on nothing is left to be stopped: the interpreter is about to exit."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def process() -> int:
    """The number of this process among those that `torchrun` started, from 0; of a process by itself 0."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def print_stopped() -> None:
    """Of several processes the first one reports."""
    if process() > 0:
        return
    print(f"stopped: {if_stopped}" if if_stopped else "stopped", file=sys.stderr)


def _stop(_: int, frame: FrameType | None) -> None:
    """Within an import, libraries turn a KeyboardInterrupt into other errors or swallow it: leave at once instead.

    Nothing is lost, since every file survives a kill.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _leave()
        frame = frame.f_back
    global _is_stopping
    _is_stopping = True
    raise KeyboardInterrupt


def _leave() -> None:
    print_stopped()
    os._exit(INTERRUPTED)


def _leave_if_swallowed(unraisable: sys.UnraisableHookArgs) -> None:
    """A KeyboardInterrupt within a destructor would only be printed.

    After one, destructors of what was half built, such as torch's loader, complain of attributes that are missing.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _leave()
    if not (_is_stopping and issubclass(unraisable.exc_type, AttributeError)):
        sys.__unraisablehook__(unraisable)
