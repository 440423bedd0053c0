"""`--models`: architectures, each perhaps with settings of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from urllib.parse import quote

from fla_mesa.errors import UserError
from fla_mesa.models import zoo
from fla_mesa.train import overrides
from fla_mesa.train.overrides import split_outside_brackets


@dataclass(frozen=True)
class Variant:
    """A row of the report.

    Attributes:
        label: As `--models` names it: "mesanet", or "mesanet@max_cg_step_training=5".
        architecture: What stands before the "@".
        zoo_name: The zoo's name of that under the comparison's parametrisation.
        overrides: Its `--config_overrides`, or None.
    """

    label: str
    architecture: str
    zoo_name: str
    overrides: str | None

    @property
    def folder_name(self) -> str:
        """The folder of its cells."""
        return self.zoo_name + quote(self.label.removeprefix(self.architecture), safe="@=,[] ")


def parse_variants(
    text: str, parametrization: str, config_overrides: str | None
) -> tuple[list[Variant], list[Variant]]:
    """The rows that `--models` asks for, and architectures beside them that `--config_overrides` names, which may join in a later call.

    Args:
        text: NAME,NAME@setting=value@setting=value,... with values as in `--config_overrides`.
        parametrization: "released" or "matched".
        config_overrides: Changes for all; a key that names an architecture holds changes for it alone.

    Raises:
        UserError: There is no such architecture or parametrisation, or the text is no list of them.
    """
    labels = list(dict.fromkeys(split_outside_brackets(text, ",")))
    if not labels:
        raise UserError(f"models: expected a comma-separated list; got {text!r}")
    common = {} if config_overrides is None else overrides.parse(config_overrides)
    own = {name: common.pop(name) for name in list(common) if name in _architectures()}
    for name, changes in own.items():
        if not isinstance(changes, dict):
            raise UserError(
                f"config_overrides: {name} is an architecture, and takes an object of its settings; got {changes!r}"
            )

    def variant(label: str) -> Variant:
        name, *settings = split_outside_brackets(label, "@")
        wrong = f"models: expected NAME@setting=value@setting=value; got {label!r}"
        changes = {**common, **own.get(name, {}), **dict(overrides.setting(part, wrong) for part in settings)}
        written = None if config_overrides is None and not settings else json.dumps(changes)
        return Variant(label, name, zoo.resolve(name, parametrization), written)

    rows = [variant(label) for label in labels]
    named = {row.architecture for row in rows}
    return rows, [variant(name) for name in own if name not in named]


def _architectures() -> set[str]:
    return {name for parametrization in zoo.PARAMETRIZATIONS for name in zoo.names(parametrization)}
