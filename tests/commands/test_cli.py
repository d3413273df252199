import argparse
import os
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import pytest

from diveparse.commands import __main__, compare, interrupt
from diveparse.commands.cli import COMMANDS, WITH_SUBCOMMANDS, main, parse
from diveparse.datasets.clips import BadRowsError
from diveparse.datasets.storage.disk import DiskFullError

TOOLS = Path(__file__).resolve().parents[2] / "tools"
QUICK = [name for name in COMMANDS if name not in WITH_SUBCOMMANDS]
SHOW_HELP = """
import sys
from diveparse.commands.cli import main
for arguments in {all_arguments!r}:
    try:
        main([*arguments, "--help"])
    except SystemExit as exit:
        assert exit.code == 0
    assert "torch" not in sys.modules, arguments
"""


def examples_of(name: str) -> list[list[str]]:
    """The arguments of each example that --help shows for a command."""
    lines = [line.strip() for line in import_module(f"diveparse.commands.{name}").EXAMPLES.splitlines()]
    commands = [shlex.split(line.partition(" > ")[0]) for line in lines if line.startswith("%(prog)s")]
    return [command[1:] for command in commands]


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Have the command `compare` end with an error."""

    def run(_: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(compare, "run", run)


def test_help_is_shown_without_importing_torch() -> None:
    code = SHOW_HELP.format(all_arguments=[[], *([name] for name in QUICK)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TOOLS, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"\n    {name} " in done.stdout or f"\n    {name}\n" in done.stdout for name in COMMANDS)
    assert all(f"usage: diveparse {name} " in done.stdout for name in QUICK)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_of_a_command_can_be_parsed(name: str) -> None:
    examples = examples_of(name)
    assert examples
    for arguments in examples:
        parse(name, import_module(f"diveparse.commands.{name}"), arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_script_in_tools_starts_its_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(TOOLS / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [path, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(path, run_name="__main__")
    assert capsys.readouterr().out.startswith(f"usage: diveparse {name} ")
    runpy.run_path(path, run_name="__mp_main__")  # as a worker process imports it: nothing starts


def test_every_command_is_a_script_and_a_module() -> None:
    modules = {path.stem for path in Path(compare.__file__).parent.glob("*.py")}
    modules -= {"__init__", "__main__", "cli", "interrupt"}
    assert modules == set(COMMANDS) == {path.stem for path in TOOLS.glob("*.py")}


@pytest.mark.parametrize("arguments", [[], ["tarin"], ["--resume"]])
def test_what_is_no_command_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert capsys.readouterr().err.startswith("usage: diveparse ")


def test_options_may_stand_between_positional_arguments() -> None:
    args = parse("compare", compare, ["one", "--out", "elsewhere", "two"])
    assert (args.runs, args.out) == ([Path("one"), Path("two")], Path("elsewhere"))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            ValueError("x.yaml: wrong\n  in a way that\n  a library explains"),
            "x.yaml: wrong in a way that a library",
        ),
        (FileNotFoundError(2, "No such file or directory", "x.yaml"), "[Errno 2] No such file or directory: 'x.yaml'"),
    ],
)
def test_what_a_user_can_put_right_is_one_line_and_exit_code_1(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, error)
    assert main(["compare", "run"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {line}")
    assert captured.err.count("\n") == 1


def test_rows_that_cannot_be_used_have_a_line_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, BadRowsError("x.csv: 2 of 9 rows cannot be used\n  line 3: one\n  line 4: two"))
    assert main(["compare", "run"]) == 1
    assert capsys.readouterr().err == "error: x.csv: 2 of 9 rows cannot be used\n  line 3: one\n  line 4: two\n"


def test_a_fault_of_our_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, RuntimeError("a fault"))
    with pytest.raises(RuntimeError, match="a fault"):
        main(["compare", "run"])


def test_a_pipe_that_breaks_elsewhere_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, BrokenPipeError("the pipe to a worker"))
    assert main(["compare", "run"]) == 1
    assert capfd.readouterr().err == "error: the pipe to a worker\n"


def test_ctrl_c_ends_with_exit_code_130_and_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    assert main(["compare", "run"]) == 130
    assert capsys.readouterr().err == "stopped: the same command starts again from the beginning\n"


def test_after_ctrl_c_destructors_of_what_is_half_built_are_not_heard(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class HalfBuilt:
        def __del__(self) -> None:
            raise AttributeError("as of torch's loader")

    monkeypatch.setattr(sys, "unraisablehook", interrupt._leave_if_swallowed)
    monkeypatch.setattr(interrupt, "_is_stopping", False)
    HalfBuilt()
    assert "as of torch's loader" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        interrupt._stop(signal.SIGINT, None)
    HalfBuilt()
    assert capsys.readouterr().err == ""


INTERRUPTED_IMPORT = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    raise ImportError("as libraries do") from None
"""


@pytest.mark.parametrize("module", ["argparse", "tqdm", "torch"])
def test_ctrl_c_while_anything_is_imported_shows_no_traceback(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(INTERRUPTED_IMPORT)
    code = "import sys; from diveparse.commands.__main__ import main; sys.path.insert(0, sys.argv.pop(1)); exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "train", "demo"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job of a shell ignores it
    )
    assert done.returncode == 130
    assert done.stderr.startswith("stopped")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "arguments", [["--help"], ["compare", "--help"], ["prepare", "sheet", "101B", "--out", "x.png"]]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_is_full_is_one_line_and_exit_code_1(arguments: list[str], unbuffered: str, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, __main__.__file__, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    line = (
        "error: standard output: No space left on device; what was to be printed is incomplete; free some space and "
        "start the same command again\n"
    )
    assert (done.returncode, done.stderr) == (1, line)


def test_output_that_is_closed_is_one_line_and_exit_code_1() -> None:
    command = [sys.executable, __main__.__file__, "--help"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (1, "error: standard output is closed; open it, or send it to a file\n")


def test_a_full_error_output_changes_nothing_but_the_words(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, __main__.__file__, "compare", str(tmp_path / "missing")]
        assert subprocess.run(command, stderr=full, check=False).returncode == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DiskFullError("x/metrics.json: no space left on the disk (1 kB free)"), "x/metrics.json: no space left on "),
        (OSError(28, "No space left on device", "x.png"), "x.png: no space left on the disk; free some space "),
        (RuntimeError("unexpected pos 576 vs 534"), "a file, perhaps in /tmp: no space left on the disk; free some "),
    ],
)
def test_a_full_disk_is_one_line_with_how_to_go_on(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    raising(monkeypatch, error)
    assert main(["compare", "run"]) == 1
    written = capsys.readouterr().err
    assert written.startswith(f"error: {line}")
    assert written.endswith(" (the same command starts again from the beginning)\n")
