"""The command line: how every command parses its arguments, logs, reports an error and ends."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO, TextIOWrapper
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

from diveparse.commands import interrupt
from diveparse.commands.interrupt import INTERRUPTED, process
from diveparse.datasets.storage.disk import DiskFullError, space_problem

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # has no public name

# each command is the module of that name in this folder, imported only when it is chosen
COMMANDS = {
    "demo": "the whole idea in one go, on rendered dives",
    "prepare": "check a data set and make its cache, or render one",
    "train": "train one arm of an experiment",
    "test": "evaluate a trained run on its test split, once",
    "compare": "compare tested runs: one table, paired statistics, plots",
    "predict": "read the dive number off videos",
    "export": "write a model for transformers, ONNX or torch.export",
    "experiment": "train, test and compare every arm with every seed",
    "results": "fill in the page of all results from their tables",
    "pretrain": "pretrain a backbone on the kinematics of rendered dives",
    "benchmark": "measure speed and memory beside peers",
}
DISTRIBUTED = ("train", "test", "pretrain")  # commands that several processes can share
TERMINATED = 128 + signal.SIGTERM  # the exit code of a training that SIGTERM ended; see engine/termination.py
WRONG_USAGE = 2  # the exit code of argparse
SECONDS_TO_REPORT = 60.0  # that other processes leave to the first one
WITH_SUBCOMMANDS = ("prepare", "benchmark")  # argparse takes these, or options between positional arguments, not both


class Command(Protocol):
    """What the module of a command offers. Its docstring is the description that --help shows.

    A module imports what is slow inside `run`, so that --help is quick. `prepare` cannot: its options list types.
    """

    __doc__: str | None
    EXAMPLES: str  # shown below the options; %(prog)s stands for the command

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments, and set defaults for `if_stopped` and `log_to` where those of `parse` do not fit."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work. Returns: the exit code. Raises: ValueError or OSError for what a user can put right."""


class Output:
    """Standard output, which keeps its first failure: its reader has left, or its disk is full."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.problem: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self._keeping_problem():
            return self.stream.write(text)

    def flush(self) -> None:
        with self._keeping_problem():
            self.stream.flush()

    def finish(self) -> None:
        """Write what is left; what cannot be written is dropped, or else the interpreter complains as it exits."""
        try:
            self.flush()
        except OSError:
            drop(self.stream)

    @contextmanager
    def _keeping_problem(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.problem = self.problem or error
            raise


class BarHandler(logging.StreamHandler):
    """Writes log lines above progress bars. Where the output has failed, it raises the error."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=self.stream)
        self.stream.flush()


def main(argv: list[str] | None = None) -> int:
    """Run one command. argv: its name and its arguments, by default those of this process. Returns: the exit code."""
    if sys.stderr is None:  # closed; whatever writes to it would fail
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # to the end of the process
    if sys.stdout is None:
        print("error: standard output is closed; open it, or send it to a file", file=sys.stderr)
        return 1
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that its encoding lacks, or that are no text
    if process() > 0:  # the first one reports
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # to the end of the process
        os.environ["TQDM_DISABLE"] = "1"
    with redirect_stdout(cast(TextIO, output := Output(sys.stdout))):
        try:
            code = run_command(sys.argv[1:] if argv is None else argv)
        except KeyboardInterrupt:
            interrupt.print_stopped()
            code = INTERRUPTED
        except SystemExit as ending:  # of --help, of wrong arguments, and of SIGTERM
            output.finish()
            if ending.code == WRONG_USAGE:
                leave_report_to_first()
            if ending.code == TERMINATED:
                interrupt.print_stopped()
            if output.problem is None:
                raise
            code = 1
        except Exception as error:
            if output.problem is None and not isinstance(error, ValueError | OSError) and not space_problem(error):
                raise
            if output.problem is None:
                leave_report_to_first()
                print_error(error)
            code = 1
        output.finish()
    if output.problem is None:
        return code
    if not isinstance(output.problem, BrokenPipeError):  # a reader that has left, such as `| head -1`, needs no word
        text = f"standard output: {output.problem.strerror}; what was to be printed is incomplete"
        if space_problem(output.problem):
            text += "; free some space and start the same command again"
        print_error(ValueError(text))
    return 1


def leave_report_to_first() -> None:
    """What one process finds before it has joined the others the first one most likely finds too.

    It reports, and `torchrun` then ends this process; whoever ended now would be taken for the one that failed.
    """
    distributed = sys.modules.get("torch.distributed")
    if process() > 0 and not (distributed and distributed.is_initialized()):
        time.sleep(SECONDS_TO_REPORT)


def run_command(argv: list[str]) -> int:
    """Raises: ValueError or OSError for what a user can put right."""
    interrupt.if_stopped = ""
    name = chosen_command(argv)
    if "TORCHELASTIC_RUN_ID" in os.environ and name not in DISTRIBUTED:
        if process() > 0:
            raise SystemExit(1)
        raise ValueError(f"torchrun can start {', '.join(DISTRIBUTED)}; start diveparse {name} without it")
    command = cast(Command, import_module(f"diveparse.commands.{name}"))
    with redirect_stderr(StringIO()) if process() else nullcontext():
        args = parse(name, command, argv[1:])
    interrupt.if_stopped = args.if_stopped
    logging.basicConfig(
        handlers=[BarHandler(sys.stderr if args.log_to == "stderr" or process() else sys.stdout)], format="%(message)s"
    )
    logging.getLogger("diveparse").setLevel(logging.WARNING if process() else logging.INFO)
    return command.run(args)


def chosen_command(argv: list[str]) -> str:
    """The name of the command. Exits with the list of commands for --help, and for a name that is none of them."""
    parser = argparse.ArgumentParser(
        prog="diveparse",
        description="Read the dive number off a video; train, test and compare the models that do.",
        epilog="`diveparse COMMAND --help` shows the options of a command, with examples.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return str(parser.parse_args(argv[:1]).command)


def parse(name: str, command: Command, arguments: list[str]) -> argparse.Namespace:
    """The arguments of a command; `if_stopped` is how to go on after Ctrl-C, `log_to` is stdout or stderr."""
    parser = argparse.ArgumentParser(
        prog=f"diveparse {name}",
        description=command.__doc__,
        epilog=command.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(if_stopped="the same command starts again from the beginning", log_to="stdout")
    command.add_arguments(parser)
    if name in WITH_SUBCOMMANDS:
        return parser.parse_args(arguments)
    return parser.parse_intermixed_args(arguments)


def add_command(commands: Subparsers, name: str, summary: str) -> argparse.ArgumentParser:
    """Add a subcommand. summary: for the list of subcommands, and for its own --help."""
    return commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")


def print_error(error: Exception) -> None:
    """Write an error on one line; rows of a file that cannot be used have a line each."""
    text, problem = str(error), space_problem(error)
    if isinstance(error, DiskFullError):
        text += f" ({interrupt.if_stopped})"
    elif problem is not None:
        path = getattr(error, "filename", None) or f"a file, perhaps in {tempfile.gettempdir()}"
        text = f"{path}: {problem}; free some space ({interrupt.if_stopped})"
    if "\n" in text:
        from diveparse.datasets.clips import BadRowsError  # slow to import

        text = text if isinstance(error, BadRowsError) else " ".join(text.split())
    try:
        print(f"error: {f'process {process()}: ' if process() else ''}{text}", file=sys.stderr)
    except OSError:  # nobody can see it
        drop(sys.stderr)


def drop(stream: TextIO) -> None:
    """Send what a stream still holds to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
