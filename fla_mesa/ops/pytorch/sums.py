"""Decayed sums of outer products over tiles, differentiable: the building blocks of many rules' chunkwise forms.

    S_t = (what is left of the state before the tile) + sum_{s <= t} M_ts k_s u_s'

Names of dimensions as in ``tiles.py``; K and U are the sizes of k and u.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch

from fla_mesa.ops.pytorch.decay import decay
from fla_mesa.ops.pytorch.states import scan_adjoints, scan_states
from fla_mesa.ops.pytorch.tiles import Tiles

Tensor = torch.Tensor


class Decays(NamedTuple):
    """Weights of a tile's positions.

    Attributes:
        inner: M, the weight of position s at t, ``[Z, C, C]``; zero above the diagonal.
        entry: What is left at t of the state before the tile, ``[Z, C, 1]``.
        exit: The weight of position s in the state after the tile, ``[Z, C, 1]``.
        tile: What is left after the tile of the state before it, ``[Z]``.
    """

    inner: Tensor
    entry: Tensor
    exit: Tensor
    tile: Tensor


def cumulative(tiles: Tiles, g: Tensor) -> Tensor:
    """Sums of ``g [B, T, H]`` over a tile up to and including a position, ``[Z, C]``, float64: their differences must stay exact."""
    # exp(-800) is zero in every dtype; -inf would give inf - inf, and -1e4 takes digits of what is added to it.
    return tiles.split(g.double().clamp(min=-800)).cumsum(-1)


def lower(x: Tensor) -> Tensor:
    """``[Z, C, C]`` with -inf above the diagonal."""
    return x.masked_fill(x.new_ones(x.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)


def gated(a: Tensor, beta: Tensor) -> Decays:
    """Those of ``S_t = exp(g_t) S_{t-1} + beta_t k_t u_t'``, from :func:`cumulative` and ``beta [Z, C]``, whose dtype they get."""
    dtype = beta.dtype
    entry = decay(a, dtype)
    return Decays(
        inner=decay(lower(a[:, :, None] - a[:, None, :]), dtype) * beta[:, None, :],
        entry=entry[..., None],
        exit=(decay(a[:, -1:] - a, dtype) * beta)[..., None],
        tile=entry[:, -1],
    )


class Sums:
    """S of every position.

    Args:
        tiles: The layout.
        k, u: ``[Z, C, K]`` and ``[Z, C, U]``.
        decays: Their weights.
        initial: States before each sequence, ``[N, H, K, U]``; zero if None.

    Attributes:
        before: States before each tile, ``[Z, K, U]``.
        final: States after each sequence, ``[N, H, K, U]``.
    """

    def __init__(self, tiles: Tiles, k: Tensor, u: Tensor, decays: Decays, initial: Tensor | None):
        self.k, self.u, self.inner, self.entry = k, u, decays.inner, decays.entry
        update = (k * decays.exit).mT @ u
        self.before, self.final = cast("tuple[Tensor, Tensor]", _Scan.apply(tiles, update, decays.tile, initial))

    def read(self, x: Tensor) -> Tensor:
        """``S_t' x_t``: ``[Z, C, K] -> [Z, C, U]``."""
        return torch.baddbmm((x @ self.k.mT * self.inner) @ self.u, x * self.entry, self.before)


class _Scan(torch.autograd.Function):
    """The states before every tile and after every sequence."""

    @staticmethod
    def forward(ctx: Any, tiles: Tiles, update: Tensor, decay: Tensor, initial: Tensor | None):
        states = scan_states(tiles, update, decay, initial)
        before, final = tiles.before(states), tiles.join_states(states[:, tiles.last_slots])
        ctx.tiles, ctx.initial = tiles, initial is not None
        ctx.save_for_backward(before, decay)
        return before, final

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        d_before, d_final = grads
        before, decay = ctx.saved_tensors
        tiles = ctx.tiles
        adjoints = scan_adjoints(tiles, d_before, decay, d_final)
        after = tiles.after(adjoints)
        d_initial = tiles.join_states(adjoints[:, tiles.first_slots]) if ctx.initial else None
        return None, after, (after * before).sum((-1, -2)), d_initial
