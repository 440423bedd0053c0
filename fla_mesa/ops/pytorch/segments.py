"""Splits a call into pieces. On a CPU, a piece and its intermediate results fit into the cache.

Cut or not, the result is the same: batch rows and packed sequences do not know of each other, and a sequence that is cut in time hands
its state on. It bounds the memory that a call needs besides its inputs and outputs, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Positions of a tile.
CHUNK_SIZE = 64
# Entries of one array over a segment (tiles x C x K). The solver alone touches about ten such arrays in every step.
SEGMENT_ELEMENTS = 2**18


@dataclass(frozen=True)
class Segment:
    """One piece: a range of batch rows and of time, and its states.

    Attributes:
        batch, time: Ranges of ``[B, T, ...]``.
        sequences: Range of ``[N, ...]``, the states.
        cu_seqlens: Boundaries of sequences packed into this piece, from 0; None if it is no more than one per row.
    """

    batch: slice
    time: slice
    sequences: slice
    cu_seqlens: list[int] | None = None

    @property
    def place(self) -> tuple[slice, slice]:
        """Index into ``[B, T, ...]``."""
        return self.batch, self.time


# Segments of the same sequences in the order of time: each starts from the states at the end of the one before.
Run = list[Segment]


def plan(shape: tuple[int, int, int], size: int, cu_seqlens: torch.Tensor | None, device: torch.device) -> list[Run]:
    """The pieces of a call, in runs.

    Args:
        shape: ``(B, T, H)``.
        size: The larger of K and V.
        cu_seqlens: Boundaries of packed sequences ``[N + 1]``, or None.
        device: Only a CPU wants pieces; other devices get the whole call as one.
    """
    B, T, H = shape
    boundaries = None if cu_seqlens is None else cu_seqlens.tolist()
    if device.type != "cpu":
        sequences = slice(0, B if boundaries is None else len(boundaries) - 1)
        return [[Segment(slice(0, B), slice(0, T), sequences, boundaries)]]
    budget = max(
        1, SEGMENT_ELEMENTS // (CHUNK_SIZE * max(CHUNK_SIZE, size) * H)
    )  # tiles in time, over all rows of a segment
    if boundaries is not None:
        return [run for first, last in _gather(boundaries, budget) for run in _packed(boundaries, first, last, budget)]
    rows = max(1, budget // _tiles(T))
    return [
        _split_time(slice(b, min(b + rows, B)), slice(b, min(b + rows, B)), 0, T, budget if rows == 1 else _tiles(T))
        for b in range(0, B, rows)
    ]


def _tiles(length: int) -> int:
    return -(-length // CHUNK_SIZE)


def _split_time(batch: slice, sequences: slice, start: int, end: int, budget: int) -> Run:
    """Positions start .. end - 1 of some rows, ``budget`` tiles at a time."""
    step = budget * CHUNK_SIZE
    return [Segment(batch, slice(t, min(t + step, end)), sequences) for t in range(start, end, step)]


def _gather(boundaries: list[int], budget: int) -> list[tuple[int, int]]:
    """Ranges of sequences, each with at most ``budget`` tiles or a single sequence."""
    ranges: list[tuple[int, int]] = []
    first, used = 0, 0
    for n in range(len(boundaries) - 1):
        tiles = _tiles(boundaries[n + 1] - boundaries[n])
        if n > first and used + tiles > budget:
            ranges.append((first, n))
            first, used = n, 0
        used += tiles
    return [*ranges, (first, len(boundaries) - 1)]


def _packed(boundaries: list[int], first: int, last: int, budget: int) -> list[Run]:
    """Sequences first .. last - 1 as one run; a single one needs no boundaries and may be split in time."""
    start, end, sequences = boundaries[first], boundaries[last], slice(first, last)
    if last - first == 1:
        return [_split_time(slice(0, 1), sequences, start, end, budget)]
    inside = [b - start for b in boundaries[first : last + 1]]
    return [[Segment(slice(0, 1), slice(start, end), sequences, inside)]]
