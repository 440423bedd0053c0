"""Registry of recurrence rules, so that a rule is one file: a line in this folder's ``__init__``, or a plug-in."""

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
        architecture: What the model is called of which all layers have it, in a comparison of matched models.
    """

    mixer: type[RecurrentMixer]
    description: str
    architecture: str


RULES: dict[str, Rule] = {}


def rule(name: str, description: str, *, architecture: str | None = None) -> Callable[[Mixer], Mixer]:
    """Decorator that registers a token mixer under the name used in ``MatchedConfig.rule``.

    Args:
        name: Of the rule.
        description: What it is, in a phrase, for reports.
        architecture: What ``fla-mesa compare --parametrization matched`` calls a model of it; None for the rule's own name.

    Raises:
        ValueError: The name is taken by another class.
    """

    def register(mixer: Mixer) -> Mixer:
        taken = RULES.get(name)
        if taken is not None and taken.mixer is not mixer:
            raise ValueError(f"rule {name!r} is already {taken.mixer.__name__}; got {mixer.__name__}")
        RULES[name] = Rule(mixer, description, architecture or name)
        return mixer

    return register
