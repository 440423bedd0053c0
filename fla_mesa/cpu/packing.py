"""Converts tokens to chunks and back, for equal-length batches and packed sequences alike.

Tokens: `[B, T, ...]`, or packed `[1, T, ...]` with cumulative lengths `cu_seqlens` `[N + 1]`; N = B where nothing is packed.
Chunks: `[M, H, C, ...]`, M in all, C tokens each, the last of each sequence filled up with zeros. They are ordered by their
place in their sequence: first the first chunks of all sequences, then the second ones of those that have one, and so on, so
that a recurrence over chunks takes one slice a step and no work goes into padding. Sequences stand in the order of falling
length, so that those still running at a step are always the first ones.

A token of zeros (k = v = beta = 0, log gate 0) leaves the state of every recurrence here as it is.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


class Chunks:
    """The layout of one call. `counts` holds the number of chunks of each step of a recurrence; they add up to M."""

    def __init__(
        self, x: Tensor, chunk_size: int | None, cu_seqlens: Tensor | None, initial_state: Tensor | None = None
    ):
        """x: any of the call's `[B, T, ...]` tensors; chunk_size None: one chunk per sequence.

        Raises:
            ValueError: packed input with B != 1 or with cumulative lengths that do not run from 0 to T, or a number of
                initial states other than the number of sequences.
        """
        B, T = x.shape[:2]
        lengths = sequence_lengths(x, cu_seqlens)
        self.N = B if lengths is None else len(lengths)
        if initial_state is not None and initial_state.shape[0] != self.N:
            raise ValueError(
                f"`initial_state` must hold one state for each of the {self.N} sequences, got {initial_state.shape[0]}"
            )
        self.packed = lengths is not None
        self.tokens = self.places = self.order = None
        if lengths is None or len(set(lengths)) == 1:
            self.batch, self.T = (B, T) if lengths is None else (self.N, lengths[0])
            self.C = _chunk_size(self.T, chunk_size)
            self.counts = [self.batch] * -(-self.T // self.C)
            self.longest = self.T
        else:
            self.longest = max(lengths)
            self.C = _chunk_size(self.longest, chunk_size)
            self._index(T, lengths)

    def _index(self, T: int, lengths: list[int]) -> None:
        """`tokens` `[M * C]`: the token at each place, T for the zero padding; `places` `[T]`: the inverse."""
        C = self.C
        order = sorted(range(self.N), key=lambda n: -lengths[n])
        steps = -(-self.longest // C)
        self.counts = [sum(length > i * C for length in lengths) for i in range(steps)]
        length = torch.tensor(lengths)
        start = length.cumsum(0) - length
        self.order = None if order == sorted(order) else torch.tensor(order)
        length, start = length[order], start[order]
        rows = []
        for i, count in enumerate(self.counts):
            at = torch.arange(i * C, (i + 1) * C)
            rows.append(torch.where(at < length[:count, None], start[:count, None] + at, T))
        self.tokens = torch.cat(rows).flatten()
        real = self.tokens < T
        self.places = torch.empty(T, dtype=torch.long)
        self.places[self.tokens[real]] = real.nonzero()[:, 0]

    def split(self, x: Tensor) -> Tensor:
        """`[B, T, H, ...]` -> `[M, H, C, ...]`"""
        if self.tokens is not None:
            rows = torch.cat([x[0], x.new_zeros(1, *x.shape[2:])]).index_select(0, self.tokens)
            return rows.unflatten(0, (-1, self.C)).transpose(1, 2).contiguous()
        x = x.reshape(self.batch, self.T, *x.shape[2:])
        if self.T % self.C:
            x = F.pad(x, [0, 0] * (x.ndim - 2) + [0, -self.T % self.C])
        x = x.unflatten(1, (-1, self.C))  # [B, steps, C, H, ...]
        return x.movedim(0, 1).transpose(2, 3).flatten(0, 1).contiguous()

    def join(self, y: Tensor) -> Tensor:
        """`[M, H, C, ...]` -> `[B, T, H, ...]`"""
        y = y.transpose(1, 2)  # [M, C, H, ...]
        if self.places is not None:
            return y.flatten(0, 1).index_select(0, self.places)[None]
        y = y.unflatten(0, (-1, self.batch)).movedim(0, 1).flatten(1, 2)[:, : self.T]
        return y.reshape(1, -1, *y.shape[2:]) if self.packed else y

    def enter(self, state: Tensor) -> Tensor:
        """States of the sequences `[N, ...]`, longest sequence first."""
        return state if self.order is None else state[self.order]

    def leave(self, state: Tensor) -> Tensor:
        """Inverse of `enter`."""
        return state if self.order is None else state[self.order.argsort()]


def _chunk_size(longest: int, chunk_size: int | None) -> int:
    """A power of two, no longer than needed; the whole length if chunk_size is None."""
    if chunk_size is None:
        return max(longest, 1)
    return min(chunk_size, 1 << max(longest - 1, 0).bit_length())


def sequence_lengths(x: Tensor, cu_seqlens: Tensor | None) -> list[int] | None:
    """Lengths of the sequences packed into x `[1, T, ...]`; None if nothing is packed.

    Raises:
        ValueError: `cu_seqlens` does not fit x.
    """
    if cu_seqlens is None:
        return None
    B, T = x.shape[:2]
    if B != 1:
        raise ValueError(f"`cu_seqlens` is for packed input, of batch size 1: got batch size {B}")
    ends = cu_seqlens.tolist()
    lengths = [b - a for a, b in pairwise(ends)]
    if not lengths or ends[0] != 0 or ends[-1] != T or min(lengths) < 0:
        raise ValueError(f"`cu_seqlens` must rise from 0 to the {T} tokens given, got {ends}")
    return lengths
