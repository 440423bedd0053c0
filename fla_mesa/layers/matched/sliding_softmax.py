"""Sliding-window softmax attention: the paper's controls SWA-4 to SWA-1024."""

from __future__ import annotations

from dataclasses import dataclass

from fla_mesa.layers.matched.registry import rule
from fla_mesa.layers.matched.softmax import SoftmaxAttention, SoftmaxSettings


@dataclass(frozen=True, kw_only=True)
class SlidingSoftmaxSettings(SoftmaxSettings):
    """Settings of :class:`SlidingSoftmaxAttention`.

    Attributes:
        window_size: How many tokens a query sees, itself included.
    """

    window_size: int

    def __post_init__(self) -> None:
        size = self.window_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"window_size must be an integer >= 1; got {size!r}")


@rule("sliding_softmax", "softmax attention with RoPE over the last window_size tokens", architecture="swa")
class SlidingSoftmaxAttention(SoftmaxAttention):
    """:class:`SoftmaxAttention` over the last tokens only (arXiv 2506.05233, section 4, "Controls").

    Its cache holds window - 1 tokens. Cost and memory grow with length times window.
    """

    Settings = SlidingSoftmaxSettings

    def __init__(self, settings: SlidingSoftmaxSettings, layer_idx: int | None = None):
        super().__init__(settings, layer_idx)
        self.window = settings.window_size
