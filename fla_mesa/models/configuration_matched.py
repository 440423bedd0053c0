"""Configuration of the matched family."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fla_mesa.layers.matched import RULES
from fla_mesa.models.configuration_mesanet import MesaNetConfig
from fla_mesa.models.settings_table import COUNT, setting


class MatchedConfig(MesaNetConfig):
    """MesaNet in all but its recurrence rule (arXiv 2506.05233, appendix E.1).

    Settings of the solver, lamb and the cap on gamma belong to Mesa layers, those of heads and of the output gate to all but ``rg_lru``
    layers, `gamma_init` to all but ``delta``, ``softmax`` and ``rg_lru`` layers.

    Raises:
        ValueError: A value is out of range.
        TypeError: A key is unknown.
    """

    model_type = "mesanet_matched"

    rule: str | Sequence[str] = setting(
        "mesa", None, "A name in fla_mesa.layers.matched.RULES, or several that take turns over the layers."
    )
    recurrence_width: int | None = setting(
        None, COUNT.or_none(), "Width of the recurrence of rg_lru layers, a multiple of num_heads, which is the number of blocks in the "
        "matrices of its gates. None for the one that gives the layer 4 D^2 parameters.",
    )  # fmt: skip

    def _check_together(self) -> None:
        super()._check_together()
        rules = [self.rule] if isinstance(self.rule, str) else list(self.rule)
        unknown = sorted({str(name) for name in rules} - set(RULES))
        if unknown:
            raise ValueError(f"rule must be among {', '.join(RULES)}; got {', '.join(unknown)}")
        if not 1 <= len(rules) <= self.num_hidden_layers:
            raise ValueError(
                f"rule must name 1 to {self.num_hidden_layers} rules, one a layer at most; got {len(rules)}"
            )
        if "softmax" in rules and self.head_dim % 2:
            raise ValueError(f"head_dim must be even for RoPE; got {self.head_dim}")
        if self.recurrence_width is not None and self.recurrence_width % self.num_heads:
            raise ValueError(
                f"recurrence_width must be a multiple of num_heads = {self.num_heads}; got {self.recurrence_width}"
            )
        self.rule = rules

    def rule_of(self, layer_idx: int) -> str:
        """The rule of a layer."""
        return self.rule[layer_idx % len(self.rule)]


def matching_width(hidden_size: int, blocks: int) -> int:
    """The width R of a recurrence with 3 D R + 2 R² / blocks = 4 D², to a multiple of 8 in a block; 1.25 D at 12 blocks of the paper."""
    width = (math.sqrt(9 + 32 / blocks) - 3) * blocks / 4 * hidden_size
    return max(1, round(width / (8 * blocks))) * 8 * blocks
