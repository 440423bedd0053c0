"""The delta rule with a forget gate: the paper's "Gated DeltaNet"."""

from __future__ import annotations

from typing import Any

import torch
from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule

from fla_mesa.layers.matched.one_state import OneState
from fla_mesa.layers.matched.registry import rule

Tensor = torch.Tensor


@rule(
    "gated_delta", "delta rule with a scalar forget gate and a scalar input gate a head", architecture="gated_deltanet"
)
class GatedDeltaRule(OneState):
    """``S <- gamma S + beta k (v - gamma S' k)'``"""

    def _op(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, decode: bool, **call):
        assert g is not None and beta is not None
        op: Any = fused_recurrent_gated_delta_rule if decode else chunk_gated_delta_rule  # fla's decorators hide types
        return op(q, k, v, g, beta=beta.to(v.dtype), **call)
