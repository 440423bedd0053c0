"""Softmax attention on the queries and keys of the recurrent rules."""

from __future__ import annotations

import torch

from fla_mesa.layers.matched.attention import SoftmaxRule
from fla_mesa.layers.matched.registry import rule
from fla_mesa.ops.backends import l2_normalize


@rule(
    "softmax_matched",
    "softmax attention with RoPE on the same convolved and normalised queries and keys",
    architecture="transformer_conv",
)
class MatchedSoftmaxAttention(SoftmaxRule):
    """``o_t = sum_s softmax_s(sqrt(d) q_t' k_s) v_s`` over s <= t, q and k convolved, of norm 1, turned by RoPE.

    sqrt(d) is the scale at which unit vectors stand to each other as vectors of norm sqrt(d) do at the usual 1 / sqrt(d). Not in the
    paper: it isolates what softmax and an unbounded state give from what convolutions and norms do.
    """

    def _scale(self) -> float:
        return self.head_dim**0.5

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        return l2_normalize(x)
