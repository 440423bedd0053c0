"""Linear attention with both gates: the paper's "GLA"."""

from __future__ import annotations

import torch

from fla_mesa.layers.matched.gated_linear_no_input_gate import LinearAttention
from fla_mesa.layers.matched.registry import rule

Tensor = torch.Tensor


@rule("gated_linear", "linear attention with a scalar forget gate and a scalar input gate a head", architecture="gla")
class InputGatedLinearAttention(LinearAttention):
    """``S <- gamma S + beta k v'``"""

    input_gate = True

    def _op(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, decode: bool, **call):
        assert beta is not None
        return super()._op(q, k, (v * beta[..., None]).to(v.dtype), g, None, decode, **call)
