"""Padded batches as packed sequences, so that padding never enters a recurrence or a convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from fla.layers.utils import index_first_axis, pad_input
from fla.utils import tensor_cache


class Packing(NamedTuple):
    """Where the real tokens of a padded batch are.

    Attributes:
        indices: Their places in the flattened ``[B * T]`` batch.
        cu_seqlens: Boundaries of the rows that have any, ``[N + 1]``.
        rows: Those rows ``[N]``, or None if it is all of them.
    """

    indices: torch.Tensor
    cu_seqlens: torch.Tensor
    rows: torch.Tensor | None


def find_packing(attention_mask: torch.Tensor, length: int) -> Packing | None:
    """How to pack the last ``length`` positions under ``attention_mask [B, >= length]``, or None if nothing is padding.

    Raises:
        ValueError: The mask has another rank, is shorter than the input, or leaves no token at all.
    """
    if attention_mask.ndim != 2 or attention_mask.shape[1] < length:
        raise ValueError(
            f"attention_mask must be a 0-1 matrix [batch, length >= {length}] with 0 for padding; got shape {list(attention_mask.shape)}"
        )
    if torch.is_inference(attention_mask):  # its version is not counted, so that a cached answer could be stale
        return _find_packing(attention_mask, length)
    return _cached_packing(attention_mask, length, attention_mask._version)


def _find_packing(attention_mask: torch.Tensor, length: int, version: int = 0) -> Packing | None:
    real = attention_mask[:, -length:] != 0
    if bool(real.all()):
        return None
    lengths = real.sum(1, dtype=torch.int32)
    rows = lengths.nonzero().flatten()
    if len(rows) == 0:
        raise ValueError(f"attention_mask leaves no token in its last {length} positions")
    cu_seqlens = torch.nn.functional.pad(lengths[rows].cumsum(0, dtype=torch.int32), (1, 0))
    return Packing(real.flatten().nonzero().flatten(), cu_seqlens, None if len(rows) == len(real) else rows)


# The layers of a model ask for the same mask in turn, and reading it stalls a GPU.
_cached_packing = cast(
    "Callable[[torch.Tensor, int, int], Packing | None]", tensor_cache(cast("Callable[..., Any]", _find_packing))
)


def pack(x: torch.Tensor, packing: Packing) -> torch.Tensor:
    """``[B, T, D] -> [1, tokens, D]``."""
    return index_first_axis(x.flatten(0, 1), packing.indices).unsqueeze(0)


def unpack(x: torch.Tensor, packing: Packing, batch: int, length: int) -> torch.Tensor:
    """``[1, tokens, D] -> [B, T, D]``, zero at the padding."""
    return pad_input(x.squeeze(0), cast("torch.LongTensor", packing.indices), batch, length)
