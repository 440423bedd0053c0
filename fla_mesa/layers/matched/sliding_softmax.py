"""Softmax attention that sees a window: the paper's controls SWA-4 to SWA-1024."""

from __future__ import annotations

from fla_mesa.layers.matched.registry import rule
from fla_mesa.layers.matched.softmax import SoftmaxAttention


@rule("sliding_softmax", "softmax attention with RoPE over the last window_size tokens", architecture="swa")
class SlidingSoftmaxAttention(SoftmaxAttention):
    """:class:`SoftmaxAttention` over the last tokens only (arXiv 2506.05233, section 4, "Controls").

    Its cache holds window - 1 tokens. Cost and memory grow with length times window.

    Args:
        hidden_size, num_heads, head_dim, use_output_gate, layer_idx, norm_eps: As in :class:`SoftmaxAttention`.
        window_size: How many tokens a query sees, itself included.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        window_size: int,
        use_output_gate: bool = False,
        layer_idx: int | None = None,
        norm_eps: float = 1e-5,
    ):
        super().__init__(hidden_size, num_heads, head_dim, use_output_gate, layer_idx, norm_eps)
        if isinstance(window_size, bool) or not isinstance(window_size, int) or window_size < 1:
            raise ValueError(f"window_size must be an integer >= 1; got {window_size!r}")
        self.window = window_size
