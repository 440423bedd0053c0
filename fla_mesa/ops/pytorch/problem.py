"""One call of the op, cut into tiles and scaled: what its forward and its backward pass both start from.

With ``L = diag(lamb)``, the substitution ``k~ = L^-1/2 k``, ``q~ = L^-1/2 q``, ``H~ = L^-1/2 H L^-1/2``, ``G~ = L^-1/2 G`` turns
``(H + L) x = q, o = G'x`` into ``(H~ + I) x~ = q~, o = G~'x~`` with ``x = L^-1/2 x~``. It costs nothing, saves the product with lamb in
every step of the solver, bounds the smallest eigenvalue by 1, and where lamb varies over channels it halves the number of steps
(docs/log.md). Everything named k, x, y, H and G in this folder is in those coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fla_mesa.ops.pytorch.states import scan_states
from fla_mesa.ops.pytorch.tiles import Tiles

CHUNK_SIZE = 64
# The solver touches about ten arrays of C x K per tile in every step; a group of tiles that fits the cache is several times faster.
GROUP_ELEMENTS = 2**18


class Problem:
    """The tiles of one call, and the states between them.

    Attributes:
        tiles: The layout.
        unit: ``lamb^-1/2``, ``[H, K]``.
        k, v: ``[Z, C, K]`` (scaled), ``[Z, C, V]``.
        beta: ``[Z, C]``.
        a: Sum of g over the tile up to and including a position, ``[Z, C]``, float64: differences of large sums must stay exact.
        states: ``[H | G]`` before every tile and after every sequence, ``[R, slots, K, K + V]``.
    """

    def __init__(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        lamb: torch.Tensor,
        h_kk_init: torch.Tensor | None,
        h_kv_init: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None,
    ):
        B, T, H, K = k.shape
        longest = T if cu_seqlens is None else int(cu_seqlens.diff().max())
        self.tiles = tiles = Tiles(B, T, H, min(CHUNK_SIZE, longest), cu_seqlens, k.device)
        self.dtype = torch.float64 if k.dtype == torch.float64 else torch.float32
        self.unit = lamb.to(self.dtype).rsqrt()
        self.k = self.split_scaled(k)
        self.v = tiles.split(v.to(self.dtype))
        self.beta = tiles.split(beta.to(self.dtype))
        # exp(-1e4) is zero in every dtype; -inf itself would give inf - inf.
        self.a = tiles.split(g.double().clamp(min=-1e4)).cumsum(-1)
        initial = None
        if h_kk_init is not None and h_kv_init is not None:
            h_kk_init, h_kv_init = h_kk_init.to(self.dtype), h_kv_init.to(self.dtype)
            initial = torch.cat(
                [self.unit[:, :, None] * h_kk_init * self.unit[:, None, :], self.unit[:, :, None] * h_kv_init], -1
            )
        update = self.k.new_empty(len(self.k), K, K + self.v.shape[-1])
        for group in self.groups():
            weighted = self.k[group] * self.exit_weight(group)
            torch.bmm(weighted.mT, torch.cat([self.k[group], self.v[group]], -1), out=update[group])
        self.states = scan_states(tiles, update, self.a[:, -1].exp().to(self.dtype), initial)

    def split_scaled(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, T, H, K]`` in the caller's coordinates to ``[Z, C, K]`` in ours, for q and k."""
        return self.tiles.split(x.to(self.dtype) * self.unit)

    def join_scaled(self, x: torch.Tensor) -> torch.Tensor:
        """The way back for x, and for the gradients of q and k."""
        return self.tiles.join(x) * self.unit

    def groups(self) -> Iterator[slice]:
        """Slices of the tiles that are worked on together."""
        Z, C, K = self.k.shape
        size = max(1, GROUP_ELEMENTS // (C * max(C, K))) if self.k.device.type == "cpu" else Z
        return (slice(z, min(z + size, Z)) for z in range(0, Z, size))

    def entry_decay(self, group: slice) -> torch.Tensor:
        """``exp(a_t)``, what is left at t of the state before the tile: ``[Z, C, 1]``."""
        return self.a[group].exp().to(self.dtype).unsqueeze(-1)

    def exit_decay(self, group: slice) -> torch.Tensor:
        """``exp(a_C - a_s)``, what is left of position s at the end of the tile: ``[Z, C, 1]``."""
        a = self.a[group]
        return (a[:, -1:] - a).exp().to(self.dtype).unsqueeze(-1)

    def exit_weight(self, group: slice) -> torch.Tensor:
        """``exp(a_C - a_s) beta_s``: ``[Z, C, 1]``."""
        return self.exit_decay(group) * self.beta[group].unsqueeze(-1)

    def inner_decay(self, group: slice) -> torch.Tensor:
        """``exp(a_t - a_s)`` for s <= t, else 0: ``[Z, C, C]``."""
        a = self.a[group]
        C = a.shape[-1]
        future = torch.ones(C, C, dtype=torch.bool, device=a.device).triu_(1)
        return (a[:, :, None] - a[:, None, :]).to(self.dtype).masked_fill_(future, -torch.inf).exp_()

    def states_at(self, states: torch.Tensor, group: slice, after: bool = False) -> torch.Tensor:
        """Those of ``states [R, slots, K, D]`` before (or after) the tiles of a group: ``[Z, K, D]``."""
        per_row, slots = self.tiles.per_row, states.shape[1]
        indices = [z // per_row * slots + self.tiles.slot[z % per_row] + after for z in range(group.start, group.stop)]
        return states.flatten(0, 1)[torch.tensor(indices, device=states.device)]

    def last_states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``h_kk [N, H, K, K]`` and ``h_kv [N, H, K, V]`` after every sequence, in the caller's coordinates."""
        last = [self.tiles.slot[j - 1] + 1 for j in self.tiles.end]
        h = self.tiles.join_states(self.states[:, last])
        K, norm = self.k.shape[-1], self.unit.reciprocal()
        return norm[:, :, None] * h[..., :K] * norm[:, None, :], norm[:, :, None] * h[..., K:]

    def operator(self, group: slice, inner: torch.Tensor, h: torch.Tensor):
        """The solver's ``p -> (H_t + I) p`` for all positions of a group: ``p + ((p k') * M) k + exp(a) p H_0``."""
        k, entry = self.k[group], self.entry_decay(group)
        scores, decayed = torch.empty_like(inner), torch.empty_like(k)

        def apply(p: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            torch.bmm(p, k.mT, out=scores).mul_(inner)
            torch.baddbmm(p, scores, k, out=out)
            return out.baddbmm_(torch.mul(p, entry, out=decayed), h)

        return apply
