"""The delta rule: the paper's "DeltaNet"."""

from __future__ import annotations

from typing import Any

import torch
from fla.ops.delta_rule import chunk_delta_rule, fused_recurrent_delta_rule

from fla_mesa.layers.matched.one_state import OneState
from fla_mesa.layers.matched.registry import rule

Tensor = torch.Tensor


@rule("delta", "delta rule with a scalar input gate a head", architecture="delta_net")
class DeltaRule(OneState):
    """``S <- S + beta k (v - S' k)'``"""

    forget_gate = False

    def _op(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, decode: bool, **call):
        assert beta is not None
        op: Any = fused_recurrent_delta_rule if decode else chunk_delta_rule  # fla's decorators hide their types
        return op(q, k, v, beta.to(v.dtype), **call)
