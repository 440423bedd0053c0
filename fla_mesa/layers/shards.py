"""Token mixers on one shard of a row that is split over ranks; see :mod:`fla_mesa.ops.context_parallel`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from fla_mesa.ops.context_parallel import ContextLike, rows_before


def refuse_shard(mixer: object, layer_idx: int | None, past_key_values: object, use_cache: bool | None) -> None:
    """Refuses what cannot work on a shard of a row.

    Raises:
        ValueError: The mixer cannot, or a cache comes with the shard.
    """
    if not getattr(mixer, "context_parallel", False):
        layer = "" if layer_idx is None else f"layer {layer_idx}, "
        raise ValueError(
            f"cp_context: {layer}{type(mixer).__name__}, cannot be split over ranks; only Mesa and linear attention with scalar gates can"
        )
    for name, value in (("past_key_values", past_key_values), ("use_cache", use_cache or None)):
        if value is not None:
            raise ValueError(
                f"{name} cannot be combined with cp_context: the states at a shard's end belong to the next rank"
            )


def conv_states_before(
    inputs: Sequence[torch.Tensor], width: int, cp_context: ContextLike
) -> tuple[torch.Tensor, ...] | None:
    """States of short convolutions before a shard, from their inputs ``[1, T, C]`` of one dtype, in a single exchange.

    Returns:
        A state ``[N, C, width]`` an input, as fla's ``ShortConvolution`` takes it: the last ``width - 1`` rows before each of the N local
        sequences, behind a row that no output sees. None if a convolution sees its own row only.
    """
    if width == 1:
        return None
    assert cp_context.cu_seqlens is not None
    rows = rows_before(torch.cat(list(inputs), -1), width - 1, cp_context)  # [width - 1, sum of C]
    states = F.pad(rows.T[None], (1, 0, 0, 0, 0, len(cp_context.cu_seqlens) - 2))  # [N, sum of C, width]
    return states.split([x.shape[-1] for x in inputs], 1)
