"""Names of recurrence rules, so that a rule is added by its own file and a line in this folder's ``__init__``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from fla_mesa.layers.recurrent import RecurrentMixer

Mixer = TypeVar("Mixer", bound=type[RecurrentMixer])


class Rule(NamedTuple):
    """A rule that a configuration can name.

    Attributes:
        mixer: The token mixer's class.
        description: What it is, in a phrase, for reports.
    """

    mixer: type[RecurrentMixer]
    description: str


RULES: dict[str, Rule] = {}


def rule(name: str, description: str) -> Callable[[Mixer], Mixer]:
    """Register a token mixer under the name that ``MatchedConfig.rule`` takes.

    Raises:
        ValueError: The name is taken by another class.
    """

    def register(mixer: Mixer) -> Mixer:
        taken = RULES.get(name)
        if taken is not None and taken.mixer is not mixer:
            raise ValueError(f"rule {name!r} is {taken.mixer.__name__} already; got {mixer.__name__}")
        RULES[name] = Rule(mixer, description)
        return mixer

    return register
