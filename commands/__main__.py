"""The entry point of a process. It handles Ctrl-C before anything slow is imported."""

from __future__ import annotations

import sys

from diveparse.commands import interrupt


def main(argv: list[str] | None = None) -> int:
    """Run one command as a process of its own. argv: as in `cli.main`. Returns: the exit code."""
    interrupt.install()
    try:
        from diveparse.commands import cli

        return cli.main(argv)
    except KeyboardInterrupt:  # outside of what `cli.main` handles
        interrupt.print_stopped()
        return interrupt.INTERRUPTED
    finally:
        interrupt.ignore()


if __name__ == "__main__":
    sys.exit(main())
