"""Cuts [B, T, H, ...] into tiles of C positions, in one layout for dense batches and packed sequences.

Names of dimensions in this folder:
    B batch, T time, H heads, N sequences, K key size, V value size, C positions of a tile
    R = B * H rows that carry a state each, J tiles of a row, Z = R * J tiles in all
A tile never holds positions of two sequences; unused positions at the end of a sequence are zeros, and a zero step
(k = v = g = beta = 0) leaves every state as it is.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F


class Tiles:
    """The tiles of one segment.

    Args:
        batch, time, heads: Sizes of the segment ``[B, T, H, ...]``.
        size: Positions of a tile, C; fewer if no sequence has as many.
        cu_seqlens: Boundaries of packed sequences, N + 1 of them, or None for B sequences of length T.
        device: Where the tensors are.
    """

    def __init__(
        self, batch: int, time: int, heads: int, size: int, cu_seqlens: list[int] | None, device: torch.device
    ):
        boundaries = [0, time] if cu_seqlens is None else cu_seqlens
        lengths = [end - start for start, end in itertools.pairwise(boundaries)]
        self.batch, self.time, self.heads, self.size = batch, time, heads, min(size, max(lengths))
        self.packed = cu_seqlens is not None
        counts = [-(-length // self.size) for length in lengths]
        ends = list(itertools.accumulate(counts))
        self.per_row = ends[-1]  # J
        # A row of states has one slot more per sequence than tiles: the state before each tile and the one after the last. The n-th
        # sequence of a row has tiles ends[n] - counts[n] .. ends[n] - 1; tile j finds the state before it in slot[j].
        self.slot = [
            j + n for n, (count, end) in enumerate(zip(counts, ends, strict=True)) for j in range(end - count, end)
        ]
        self.first_slots = [end - count + n for n, (count, end) in enumerate(zip(counts, ends, strict=True))]
        self.last_slots = [end + n for n, end in enumerate(ends)]
        if cu_seqlens is not None:
            # place[t]: where position t lies in the row of J * C places; source: the inverse, T where a place is unused.
            offsets = [
                (end - count) * self.size - start for count, end, start in zip(counts, ends, boundaries, strict=False)
            ]
            repeats = torch.tensor(lengths, device=device)
            self.place = torch.arange(time, device=device) + torch.tensor(offsets, device=device).repeat_interleave(
                repeats
            )
            self.source = torch.full((self.per_row * self.size,), time, device=device)
            self.source[self.place] = torch.arange(time, device=device)

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

    def before(self, states: torch.Tensor) -> torch.Tensor:
        """``[R, slots, *D] -> [Z, *D]``, the states before the tiles."""
        return self._at(states, 0)

    def after(self, states: torch.Tensor) -> torch.Tensor:
        """``[R, slots, *D] -> [Z, *D]``, the states after the tiles."""
        return self._at(states, 1)

    def _at(self, states: torch.Tensor, shift: int) -> torch.Tensor:
        if self.packed:
            return states[:, [slot + shift for slot in self.slot]].flatten(0, 1)
        return states[:, shift : self.per_row + shift].flatten(0, 1)
