"""Errors that a user can fix, as opposed to bugs; fla_mesa.commands turns them into exit codes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Exit codes. DISK_FULL has its own: whoever started the command may have to stop, too, and a full disk has no room for a file that says so.
MISTAKE, DISK_FULL, STOPPED = 2, 3, 130


class UserError(ValueError):
    """A mistake in a setting, a file or an installation. The message names it, says what was received and what is allowed."""


class HubUnreachable(UserError):
    """What was asked for is on the Hugging Face hub, which cannot be reached, and no copy of it is here."""


def to_reach_hub() -> str:
    """What to do about it."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return "connect to the network" + (" and unset HF_HUB_OFFLINE" if HF_HUB_OFFLINE else "")


@contextmanager
def mistakes_of(*kinds: type[Exception], prefix: str = "") -> Iterator[None]:
    """Turns errors of these kinds raised inside the block into :class:`UserError`.

    For a call into another package that does nothing but check or open what the user named. Around more than that it hides bugs.

    Args:
        kinds: Types of exceptions.
        prefix: What goes before their messages, such as the name of a flag and a colon.

    Raises:
        UserError: An error of these kinds was raised.
    """
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        raise UserError(f"{prefix}{error}") from error


def check_integer(name: str, value: object, low: int) -> int:
    """Returns `value` if it is an integer of at least `low`.

    Raises:
        UserError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UserError(f"{name} must be an integer >= {low}; got {value!r}")
    return value


def check_folder(name: str, path: Path) -> Path:
    """Returns `path` if it is a folder or can become one.

    Raises:
        UserError: A file is in its way.
    """
    if file := next((place for place in (path, *path.parents) if place.is_file()), None):
        raise UserError(f"{name}: {str(file)!r} is a file")
    return path


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is a full disk; libraries that write files wrap it in their own errors."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
