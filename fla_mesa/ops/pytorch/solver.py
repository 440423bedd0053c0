"""Conjugate gradients on many small systems at once."""

from __future__ import annotations

from typing import Protocol

import torch


class Operator(Protocol):
    """The matrices of all tiles."""

    def __call__(self, p: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Writes ``A p`` to ``out`` and returns it; both ``[Z, C, K]``."""
        ...

    def select(self, tiles: torch.Tensor) -> Operator:
        """The operator of some tiles only, given their numbers."""
        ...


def conjugate_gradients(
    operator: Operator, b: torch.Tensor, max_steps: int, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Solve ``A_i x_i = b_i`` for every row i, each symmetric with eigenvalues >= 1.

    What differs from the textbook (Hestenes and Stiefel 1952):

    * Every row is divided by its largest entry first and x multiplied back, so that scaling b by any factor scales x by the same
      one. No constant is added to a denominator.
    * A row stops when ``||r|| <= tolerance ||b||``, when rounding makes ``p'Ap`` negative or zero, or at once if b = 0. From then on
      it does not change; the call returns when no row is left. As ``A >= I``, ``||x - x*|| <= ||r||``.
    * NaN in a row or in its matrix makes that row NaN and stops it.
    * When no more than a quarter of the tiles has rows left, the others are put aside.

    Args:
        operator: The matrices.
        b: Right-hand sides ``[Z, C, K]``, any scale. Overwritten.
        max_steps: Most steps that a row may take.
        tolerance: Relative residual at which a row stops.

    Returns:
        ``x`` like b; ``iterations`` int32 and ``residual`` (relative, dtype of b), both ``[Z, C]``.
    """
    scale = b.abs().amax(-1, keepdim=True)
    r = b.div_(scale.masked_fill(scale == 0, 1))
    x, y, p, product = torch.zeros_like(r), torch.empty_like(r), r.clone(), torch.empty_like(r)

    def dot(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.mul(u, v, out=product).sum(-1, keepdim=True)

    bb = dot(r, r)  # in [1, K], or 0, or NaN
    rr, goal, active = bb, bb * tolerance**2, bb > 0
    iterations = torch.zeros_like(active, dtype=torch.int32)
    whole, tiles = (x, iterations, rr), None  # results of all tiles; which of them are being worked on, None for all
    for _ in range(max_steps):
        operator(p, y)
        curvature = dot(p, y)
        active = active & ~(curvature <= 0)  # NaN goes on, so that it reaches x
        step = (rr / curvature).masked_fill_(~active, 0)
        x.addcmul_(p, step)
        r.addcmul_(y, step, value=-1)
        rr_before, rr = rr, dot(r, r)
        iterations += active
        active = active & (rr > goal)
        left = active.any(1).squeeze(-1)  # [Z]
        count = int(left.sum())
        if count == 0:
            break
        if count <= len(left) / 4:
            whole = _put_back((x, iterations, rr), whole, tiles)
            kept = left.nonzero().squeeze(-1)
            tiles = kept if tiles is None else tiles[kept]
            operator = operator.select(kept)
            x, iterations, r, p, rr, rr_before, goal, active = (
                t[kept] for t in (x, iterations, r, p, rr, rr_before, goal, active)
            )
            y, product = y[:count], product[:count]
        torch.addcmul(r, p, (rr / rr_before).masked_fill_(~active, 0), out=p)
    x, iterations, rr = _put_back((x, iterations, rr), whole, tiles)
    residual = (rr / bb.masked_fill(bb == 0, 1)).sqrt_()
    return x.mul_(scale), iterations.squeeze(-1), residual.squeeze(-1)


def _put_back(
    part: tuple[torch.Tensor, ...], whole: tuple[torch.Tensor, ...], tiles: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    """Results of some tiles into those of all."""
    return part if tiles is None else tuple(w.index_copy_(0, tiles, t) for w, t in zip(whole, part, strict=True))
