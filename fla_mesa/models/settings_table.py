"""A configuration as a table: each setting is one line with its default, what is allowed, and what it means."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any


@dataclasses.dataclass(frozen=True)
class Rule:
    """The allowed values of a setting: a predicate, and words for errors."""

    allowed: str | Callable[[], str]
    holds: Callable[[Any], bool]

    @property
    def words(self) -> str:
        """What is allowed now: names may be added while a program runs."""
        return self.allowed if isinstance(self.allowed, str) else self.allowed()

    def or_none(self) -> Rule:
        """The same, or None."""
        return Rule(lambda: f"{self.words} or None", lambda value: value is None or self.holds(value))


def setting(default: Any, rule: Rule | None, help: str) -> Any:
    """A dataclass field whose value :func:`check` compares with a rule.

    Args:
        default: Its default.
        rule: What is allowed, or None where the class checks it together with other settings.
        help: What it means, in a sentence.
    """
    return dataclasses.field(default=default, metadata={"rule": rule, "help": help})


def check(table: type, name: str, value: object) -> None:
    """Checks ``value`` against the rule of the setting ``name``; names that are not settings pass.

    Raises:
        ValueError: The value is not allowed.
    """
    field = table.__dataclass_fields__.get(name)  # type: ignore[attr-defined]
    rule = None if field is None else field.metadata.get("rule")
    if rule is not None and not rule.holds(value):
        raise ValueError(f"{name} must be {rule.words}; got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def number(allowed: str, holds: Callable[[float], bool]) -> Rule:
    """A finite number that satisfies ``holds``."""
    return Rule(f"a number {allowed}", lambda value: _is_number(value) and holds(value))


def one_of(values: Collection[str]) -> Rule:
    """One of some words, looked up in the collection when a value is checked."""
    return Rule(lambda: " or ".join(map(repr, values)), lambda value: value in list(values))


COUNT = Rule("an integer >= 1", lambda value: _is_integer(value) and value >= 1)
FLAG = Rule("True or False", lambda value: isinstance(value, bool))
POSITIVE = number("> 0", lambda value: value > 0)
SHARE = number("in (0, 1]", lambda value: 0 < value <= 1)
PAIR_OF_SHARES = Rule(
    "two numbers in (0, 1)",
    lambda value: (
        isinstance(value, (tuple, list)) and len(value) == 2 and all(_is_number(x) and 0 < x < 1 for x in value)
    ),
)
