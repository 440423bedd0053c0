"""Softmax attention as the paper's transformer has it."""

from __future__ import annotations

from fla_mesa.layers.matched.attention import SoftmaxRule
from fla_mesa.layers.matched.registry import rule


@rule(
    "softmax",
    "softmax attention with RoPE, on queries and keys that are neither convolved nor normalised",
    architecture="transformer",
)
class SoftmaxAttention(SoftmaxRule):
    """``o_t = sum_s softmax_s(q_t' k_s / sqrt(d)) v_s`` over s <= t, q, k, v = W x, q and k turned by RoPE.

    The block is that of Llama 2 (arXiv 2506.05233, section 4). Only recurrent layers have convolutions there (E.1), so that this one
    takes no settings for them. The norm on each head's output is in: E.1 asks for it without an exception, Llama has none.

    Args:
        hidden_size: Width of input and output, D.
        num_heads: Heads, H.
        head_dim: Size of keys and of values of a head, even.
        use_output_gate: Whether the norm on the output is gated by ``SiLU(W x)``.
        layer_idx: Index of the layer in its model; needed with a cache.
        norm_eps: Epsilon of the norm on the output.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        use_output_gate: bool = False,
        layer_idx: int | None = None,
        norm_eps: float = 1e-5,
    ):
        super().__init__(
            hidden_size,
            num_heads,
            head_dim,
            use_output_gate,
            use_short_conv=False,
            use_v_conv=False,
            layer_idx=layer_idx,
            norm_eps=norm_eps,
        )
