"""Linear attention with a forget gate: the paper's "Mamba2"."""

from __future__ import annotations

from typing import Any

import torch
from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla

from fla_mesa.layers.matched.one_state import OneState
from fla_mesa.layers.matched.registry import rule
from fla_mesa.layers.recurrent import Call, States
from fla_mesa.ops.context_parallel import linear_state_before

Tensor = torch.Tensor


@rule("gated_linear_no_input_gate", "linear attention with a scalar forget gate a head", architecture="mamba2")
class LinearAttention(OneState):
    """``S <- gamma S + k v'``"""

    input_gate = False
    context_parallel = True

    def _state_before(
        self, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, states: States | None, call: Call
    ) -> Tensor | None:
        if call.cp_context is None:
            return super()._state_before(k, v, g, beta, states, call)
        assert g is not None
        return linear_state_before(k, v, g, beta, call.cp_context)

    def _op(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, decode: bool, **call):
        op: Any = fused_recurrent_simple_gla if decode else chunk_simple_gla  # fla's decorators hide their types
        return op(q, k, v, g, **call)
