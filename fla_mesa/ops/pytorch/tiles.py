"""Cutting [B, T, H, ...] into tiles of C positions, for one layout of dense batches and packed sequences.

Names of dimensions in this folder:
    B batch, T time, H heads, N sequences, K key size, V value size, C positions of a tile
    R = B * H rows that carry a state each, J tiles of a row, Z = R * J tiles in all
A tile never holds positions of two sequences; unused positions at the end of a sequence are zeros, and a zero step
(k = v = g = beta = 0) leaves every state as it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


class Tiles:
    """The tiles of one call.

    Args:
        batch, time, heads: Sizes of the input ``[B, T, H, ...]``.
        size: Positions of a tile, C.
        cu_seqlens: Boundaries of packed sequences ``[N + 1]``, or None for B sequences of length T.
        device: Where the tensors are.
    """

    def __init__(
        self, batch: int, time: int, heads: int, size: int, cu_seqlens: torch.Tensor | None, device: torch.device
    ):
        self.batch, self.time, self.heads, self.size = batch, time, heads, size
        self.packed = cu_seqlens is not None
        lengths = [time] if cu_seqlens is None else cu_seqlens.diff().tolist()
        counts = [-(-length // size) for length in lengths]
        self.per_row = sum(counts)  # J
        # Tiles begin[n] .. end[n] - 1 of a row belong to its n-th sequence.
        self.end = torch.tensor(counts).cumsum(0).tolist()
        self.begin = [e - c for e, c in zip(self.end, counts, strict=True)]
        # A row of states has one slot more per sequence than tiles: the state before each tile and the one after the last.
        self.slot = [j + n for n, (b, e) in enumerate(zip(self.begin, self.end, strict=True)) for j in range(b, e)]
        if cu_seqlens is not None:
            positions = torch.arange(time, device=device)
            starts = cu_seqlens[:-1].to(device=device, dtype=torch.long)
            sequence = torch.bucketize(positions, starts, right=True) - 1
            first = torch.tensor(self.begin, device=device) * size
            # place[t]: where position t lies in the row of J * C places; source: the inverse, T where a place is unused.
            self.place = first[sequence] + positions - starts[sequence]
            self.source = torch.full((self.per_row * size,), time, device=device).scatter_(0, self.place, positions)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, T, H, *D] -> [Z, C, *D]``."""
        if self.packed:
            x = F.pad(x, [0, 0] * (x.ndim - 2) + [0, 1]).index_select(1, self.source)
        elif self.per_row * self.size != self.time:
            x = F.pad(x, [0, 0] * (x.ndim - 2) + [0, self.per_row * self.size - self.time])
        x = x.unflatten(1, (self.per_row, self.size))
        return x.movedim(3, 1).flatten(0, 2).contiguous()

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """``[Z, C, *D] -> [B, T, H, *D]``."""
        x = x.unflatten(0, (self.batch, self.heads, self.per_row)).movedim(1, 3).flatten(1, 2)
        return x.index_select(1, self.place) if self.packed else x[:, : self.time].contiguous()

    def split_states(self, h: torch.Tensor) -> torch.Tensor:
        """``[N, H, *D] -> [R, sequences of a row, *D]``."""
        return h.transpose(0, 1) if self.packed else h.flatten(0, 1).unsqueeze(1)

    def join_states(self, h: torch.Tensor) -> torch.Tensor:
        """``[R, sequences of a row, *D] -> [N, H, *D]``."""
        return h.transpose(0, 1).contiguous() if self.packed else h.squeeze(1).unflatten(0, (self.batch, self.heads))

    def per_head(self, x: torch.Tensor) -> torch.Tensor:
        """``[H, *D] -> [Z, *D]``, each tile the entry of its head."""
        return x[None, :, None].expand(self.batch, -1, self.per_row, *x.shape[1:]).flatten(0, 2)
