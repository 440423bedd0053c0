"""What every subcommand of ``fla-mesa`` shares: loading plug-ins and reporting user errors.

    @command("train")
    def main(argv): ...

`main` is the same for a console, a child process and a test: ``--plugin`` is taken from the line and imported before it runs. One line on
standard error tells what the user can mend (:class:`~fla_mesa.errors.UserError`, a file that cannot be opened, a full disk); everything
else is a bug in this package or another, and keeps its traceback.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from fla_mesa import plugins
from fla_mesa.errors import DISK_FULL, MISTAKE, STOPPED, UserError, is_disk_full

Main = Callable[[list[str]], int]


def command(name: str) -> Callable[[Main], Main]:
    """Decorator for a subcommand's ``main(argv) -> exit code``.

    Args:
        name: The subcommand of ``fla-mesa``.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def guarded(argv: list[str]) -> int:
            try:
                names, rest = plugins.take(argv)
                plugins.load(names)
                return main(rest)
            except KeyboardInterrupt:
                print(f"\nfla-mesa {name}: stopped", file=sys.stderr)
                return STOPPED
            except Exception as error:
                code, line = _verdict(error)
                if code is None:
                    raise
                print(f"fla-mesa {name}: {line}", file=sys.stderr)
                return code

        return guarded

    return decorate


def _verdict(error: Exception) -> tuple[int | None, str]:
    """The exit code for a user's mistake and the line to print; None for a bug."""
    if is_disk_full(error):
        return DISK_FULL, f"{error}; free some space and start again"
    if isinstance(error, UserError):
        return MISTAKE, str(error)
    if isinstance(error, OSError) and error.filename is not None:  # it names the file
        return MISTAKE, str(error)
    return None, ""
