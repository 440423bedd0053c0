"""JSON files and others: written completely or not at all, and read with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fla_mesa.errors import UserError


class Unreadable(UserError):
    """The file exists but is not a JSON object of this program. The message names it and says why."""


def write_text(path: Path, text: str) -> None:
    """Replaces `path` with `text`, completely or not at all.

    Raises:
        OSError: It cannot be written.
    """
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Replaces `path` with `content`, completely or not at all.

    Raises:
        ValueError: JSON cannot hold it; NaN, for example.
        OSError: It cannot be written.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        FileNotFoundError: There is no file.
        Unreadable: It cannot be read, is not JSON, or holds something other than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise Unreadable(f"{path} cannot be read (it holds no object)")
    return content


def read_json_if_there(path: Path) -> dict[str, Any] | None:
    """As :func:`read_json`; None if the file does not exist."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
