"""Checks of task parameters. Every message names the field, what was received and what is allowed."""

from __future__ import annotations

import numpy as np

from fla_mesa.errors import UserError


def check_int(task: str, field: str, value: object, low: int, high: int | None = None) -> None:
    """Requires `value` to be an integer with low <= value (<= high).

    Raises:
        UserError: It is not.
    """
    allowed = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UserError(f"{task}: {field} must be {allowed}, got {value!r}")
    if value < low or (high is not None and value > high):
        raise UserError(f"{task}: {field} must be {allowed}, got {value!r}")


def check_share(task: str, field: str, value: object) -> None:
    """Requires `value` to be a real number in [0, 1).

    Raises:
        UserError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UserError(f"{task}: {field} must be a number in [0, 1), got {value!r}")


def check_choice(task: str, field: str, value: object, allowed: tuple[object, ...]) -> None:
    """Requires `value` to be one of `allowed`.

    Raises:
        UserError: It is not.
    """
    if value not in allowed:
        raise UserError(f"{task}: {field} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_bool(task: str, field: str, value: object) -> None:
    """Requires `value` to be True or False (a string such as 'no' would otherwise be true).

    Raises:
        UserError: It is neither.
    """
    if not isinstance(value, bool):
        raise UserError(f"{task}: {field} must be True or False, got {value!r}")


def check_range(task: str, field: str, value: object, low: int, high: int | None = None) -> None:
    """Requires `value` to be a pair (first, last) of integers with low <= first <= last (<= high).

    Raises:
        UserError: It is not.
    """
    if not (isinstance(value, tuple) and len(value) == 2):
        raise UserError(f"{task}: {field} must be a pair (first, last), got {value!r}")
    first, last = value
    check_int(task, f"{field}[0]", first, low, high)
    check_int(task, f"{field}[1]", last, first, high)
