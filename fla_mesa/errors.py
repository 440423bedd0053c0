"""What a user can mend, told apart from a bug, and how a command ends on either.

    @command("train")
    def main(argv): ...

A command prints one line for what its user can mend: a :class:`UserError`, a file that cannot be opened, a full disk. Everything else is a
bug in this package or another, and keeps its traceback.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Exit codes. DISK_FULL has its own: whoever started the command may have to stop, too, and a full disk has no room for a file that says so.
MISTAKE, DISK_FULL, STOPPED = 2, 3, 130

Main = Callable[[list[str]], int]


class UserError(ValueError):
    """A mistake in a setting, a file or an installation. The message names it, says what was received and what is allowed."""


@contextmanager
def mistakes_of(*kinds: type[Exception], prefix: str = "") -> Iterator[None]:
    """Errors of these kinds that are raised inside become :class:`UserError`.

    For a call into another package that does nothing but check or open what the user named. Around more than that it hides bugs.

    Args:
        kinds: Types of exceptions.
        prefix: What goes before their messages, such as the name of a flag and a colon.
    """
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        raise UserError(f"{prefix}{error}") from error


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is that of a full disk; libraries that write files wrap it in their own."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def command(name: str) -> Callable[[Main], Main]:
    """Decorator of a subcommand's ``main(argv) -> exit code``: mistakes end it with one line on standard error and an exit code.

    Args:
        name: The subcommand of ``fla-mesa``.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def guarded(argv: list[str]) -> int:
            try:
                return main(argv)
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
    """The exit code for a mistake and what to print, or None for a bug."""
    if is_disk_full(error):
        return DISK_FULL, f"{error}; make room, and start it again"
    if isinstance(error, UserError):
        return MISTAKE, str(error)
    if isinstance(error, OSError) and error.filename is not None:  # it names the file
        return MISTAKE, str(error)
    return None, ""
