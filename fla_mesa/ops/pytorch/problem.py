"""One segment of a call, cut into tiles and scaled: the starting point of its forward and backward passes.

With ``L = diag(lamb)``, the substitution ``k~ = L^-1/2 k``, ``q~ = L^-1/2 q``, ``H~ = L^-1/2 H L^-1/2``, ``G~ = L^-1/2 G`` turns
``(H + L) x = q, o = G'x`` into ``(H~ + I) x~ = q~, o = G~'x~`` with ``x = L^-1/2 x~``. It costs nothing, saves the product with lamb in
every step of the solver, bounds the smallest eigenvalue by 1, and where lamb varies over channels it halves the number of steps
(docs/log.md). Everything named k, x, y, H and G in this folder is in those coordinates.
"""

from __future__ import annotations

import torch

from fla_mesa.ops.pytorch.decay import decay
from fla_mesa.ops.pytorch.segments import CHUNK_SIZE, Segment
from fla_mesa.ops.pytorch.states import scan_states
from fla_mesa.ops.pytorch.tiles import Tiles

States = tuple[torch.Tensor, torch.Tensor]


class Problem:
    """The tiles of one segment, and the states between them.

    Args:
        segment: The piece.
        k, v, g, beta, lamb: Inputs of the whole call.
        initial: ``h_kk [N, H, K, K]`` and ``h_kv [N, H, K, V]`` before this segment, of its sequences; zero if None.

    Attributes:
        tiles: The layout.
        unit: ``lamb^-1/2``, ``[H, K]``.
        k, v: ``[Z, C, K]`` (scaled), ``[Z, C, V]``.
        beta: ``[Z, C, 1]``.
        a: Sum of g over the tile up to and including a position, ``[Z, C]``, float64: differences of large sums must stay exact.
        entry_decay: ``exp(a_t)``, what is left at t of the state before the tile, ``[Z, C, 1]``.
        exit_decay: ``exp(a_C - a_s)``, what is left of position s after the tile, ``[Z, C, 1]``.
        tile_decay: ``exp(a_C)``, ``[Z]``.
        states: ``[H | G]`` before every tile and after every sequence, ``[R, slots, K, K + V]``.
    """

    def __init__(
        self,
        segment: Segment,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        lamb: torch.Tensor,
        initial: States | None,
    ):
        place = segment.place
        self.place, self.dtype = place, accumulation_dtype(k)
        self.unit = lamb.to(self.dtype).rsqrt()
        B, T, H, _ = k[place].shape
        self.tiles = tiles = Tiles(B, T, H, CHUNK_SIZE, segment.cu_seqlens, k.device)
        self.k = self.split_scaled(k)
        self.v = self.split(v)
        self.beta = self.split(beta).unsqueeze(-1)
        # exp(-800) is zero in every dtype, and small enough for float64 to keep what is added to it to 1e-13; -inf would give inf - inf.
        self.a = tiles.split(g[place].double().clamp(min=-800)).cumsum(-1)
        self.entry_decay = decay(self.a, self.dtype).unsqueeze(-1)
        self.exit_decay = decay(self.a[:, -1:] - self.a, self.dtype).unsqueeze(-1)
        self.tile_decay = self.entry_decay[:, -1, 0]
        weighted = (self.k * (self.exit_decay * self.beta)).mT
        update = torch.cat([weighted @ self.k, weighted @ self.v], -1)
        self.states = scan_states(
            tiles, update, self.tile_decay, None if initial is None else self.scale_states(initial)
        )

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, T, H, ...]`` of the whole call to ``[Z, C, ...]`` of this segment."""
        return self.tiles.split(x[self.place].to(self.dtype))

    def split_scaled(self, x: torch.Tensor) -> torch.Tensor:
        """The same for q and k, into our coordinates."""
        return self.tiles.split(x[self.place].to(self.dtype) * self.unit)

    def join_scaled(self, x: torch.Tensor) -> torch.Tensor:
        """``[Z, C, K]`` to ``[B, T, H, K]`` of this segment in the caller's coordinates, for x and the gradients of q and k."""
        return self.tiles.join(x) * self.unit

    def scale_states(self, states: States) -> torch.Tensor:
        """``[H | G] [N, H, K, K + V]`` in our coordinates."""
        h_kk, h_kv = (h.to(self.dtype) for h in states)
        left = self.unit[:, :, None]
        return torch.cat([left * h_kk * self.unit[:, None, :], left * h_kv], -1)

    def unscale_states(self, states: torch.Tensor) -> States:
        """Inverse of :func:`scale_states`."""
        norm = self.unit.reciprocal()
        K, left = norm.shape[-1], norm[:, :, None]
        return left * states[..., :K] * norm[:, None, :], left * states[..., K:]

    def inner_decay(self) -> torch.Tensor:
        """``exp(a_t - a_s)`` for s <= t, else 0: ``[Z, C, C]``."""
        # For s > t, where the difference is positive, exp(0) is computed and then cleared.
        return decay((self.a[:, :, None] - self.a[:, None, :]).to(self.dtype).clamp_(max=0), self.dtype).tril_()

    def states_before(self) -> torch.Tensor:
        """``[H | G]`` before every tile, ``[Z, K, K + V]``."""
        return self.tiles.before(self.states)

    def last_states(self) -> States:
        """``h_kk [N, H, K, K]`` and ``h_kv [N, H, K, V]`` after every sequence, in the caller's coordinates."""
        return self.unscale_states(self.tiles.join_states(self.states[:, self.tiles.last_slots]))

    def operator(self, inner: torch.Tensor, h: torch.Tensor) -> MesaOperator:
        """The solver's matrices; inner is M, h is H_0."""
        return MesaOperator(self.k, self.entry_decay, inner, h)


class MesaOperator:
    """``p -> (H_t + I) p`` for all positions of all tiles: ``p + ((p k') * M) k + exp(a) p H_0``.

    Args:
        k: ``[Z, C, K]``.
        entry: ``exp(a)``, ``[Z, C, 1]``.
        inner: M, ``[Z, C, C]``.
        h: H_0, ``[Z, K, K]``.
    """

    def __init__(self, k: torch.Tensor, entry: torch.Tensor, inner: torch.Tensor, h: torch.Tensor):
        self.parts = k, entry, inner, h
        self.scores, self.decayed = torch.empty_like(inner), torch.empty_like(k)

    def __call__(self, p: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        k, entry, inner, h = self.parts
        torch.bmm(p, k.mT, out=self.scores).mul_(inner)
        torch.baddbmm(p, self.scores, k, out=out)
        return out.baddbmm_(torch.mul(p, entry, out=self.decayed), h)

    def diagonal(self) -> torch.Tensor:
        """``diag(H_t + I)``, ``[Z, C, K]``."""
        k, entry, inner, h = self.parts
        before = torch.diagonal(h, dim1=-2, dim2=-1).unsqueeze(1)
        # Rounding may bring it below 1, as an h that is no sum of k k' would.
        return torch.addcmul(torch.bmm(inner, k.square()), entry, before).add_(1).clamp_(min=1)

    def matrices(self) -> torch.Tensor:
        """``H_t + I``, ``[Z, C, K, K]``."""
        k, entry, inner, h = self.parts
        products = (k.unsqueeze(-1) * k.unsqueeze(-2)).flatten(2)  # k_s k_s', [Z, C, K K]
        matrices = torch.baddbmm(entry * h.flatten(1).unsqueeze(1), inner, products).unflatten(-1, h.shape[1:])
        matrices.diagonal(dim1=-2, dim2=-1).add_(1)
        return matrices

    def select(self, tiles: torch.Tensor) -> MesaOperator:
        """That of some tiles only."""
        return MesaOperator(*(part[tiles] for part in self.parts))


def accumulation_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype to compute in for inputs ``x [...]``: float64 for float64, float32 for all others."""
    return torch.promote_types(x.dtype, torch.float32)
