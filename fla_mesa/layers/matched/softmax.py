"""Softmax attention as in the paper's transformer."""

from __future__ import annotations

from dataclasses import dataclass

from fla_mesa.layers.matched.attention import SoftmaxRule
from fla_mesa.layers.matched.registry import rule
from fla_mesa.layers.recurrent import QKVSettings


@dataclass(frozen=True, kw_only=True)
class SoftmaxSettings:
    """Settings of :class:`SoftmaxAttention`, as in :class:`~fla_mesa.layers.recurrent.QKVSettings`; `head_dim` is even."""

    hidden_size: int
    num_heads: int
    head_dim: int
    use_output_gate: bool = False
    norm_eps: float = 1e-5


@rule(
    "softmax",
    "softmax attention with RoPE, on queries and keys that are neither convolved nor normalised",
    architecture="transformer",
)
class SoftmaxAttention(SoftmaxRule):
    """``o_t = sum_s softmax_s(q_t' k_s / sqrt(d)) v_s`` over s <= t, q, k, v = W x, q and k turned by RoPE.

    The block is that of Llama 2 (arXiv 2506.05233, section 4). Only recurrent layers have convolutions there (E.1), so that this one
    takes no settings for them. The norm on each head's output is in: E.1 asks for it without an exception, Llama has none.
    """

    Settings = SoftmaxSettings

    def __init__(self, settings: SoftmaxSettings, layer_idx: int | None = None):
        shared = QKVSettings(
            hidden_size=settings.hidden_size,
            num_heads=settings.num_heads,
            head_dim=settings.head_dim,
            use_output_gate=settings.use_output_gate,
            norm_eps=settings.norm_eps,
            use_short_conv=False,
            use_v_conv=False,
        )
        super().__init__(shared, layer_idx)
