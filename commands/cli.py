"""The command line: how every command parses its arguments, logs, reports an error and ends."""

from __future__ import annotations

import argparse
import logging
import os
import select
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from tqdm.contrib.logging import logging_redirect_tqdm

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
    "experiment": "train, test and compare every arm with every seed",
    "pretrain": "pretrain a backbone on the kinematics of rendered dives",
    "benchmark": "measure speed and memory beside peers",
}
WITH_SUBCOMMANDS = ("prepare", "benchmark")  # argparse takes these, or options between positional arguments, not both
INTERRUPTED = 130  # the exit code of shells for a command that Ctrl-C ended


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


def main(argv: list[str] | None = None) -> int:
    """Run one command. argv: its name and its arguments, by default those of this process. Returns: the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    name, if_stopped = chosen_command(argv), ""
    try:
        command = cast(Command, import_module(f"diveparse.commands.{name}"))
        args = parse(name, command, argv[1:])
        if_stopped = args.if_stopped
        logging.basicConfig(stream=sys.stderr if args.log_to == "stderr" else sys.stdout, format="%(message)s")
        logging.getLogger("diveparse").setLevel(logging.INFO)
        with logging_redirect_tqdm():
            code = command.run(args)
        sys.stdout.flush()  # here, where a closed pipe is handled
        return code
    except KeyboardInterrupt:
        print(f"stopped: {if_stopped}" if if_stopped else "stopped", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        if not (isinstance(error, BrokenPipeError) and stdout_is_closed()):
            print_error(error)
        return 1


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
    text = str(error)
    if "\n" in text:
        from diveparse.datasets.clips import BadRowsError  # slow to import

        text = text if isinstance(error, BadRowsError) else " ".join(text.split())
    print(f"error: {text}", file=sys.stderr)


def stdout_is_closed() -> bool:
    """Whether the reader of a pipe has left, such as `| head -1`. If so, what is still to be written is dropped."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)  # errors are always reported
    if not pipe.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or else the interpreter complains as it exits
    return True


if __name__ == "__main__":
    sys.exit(main())
