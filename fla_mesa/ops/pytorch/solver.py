"""Conjugate gradients on many small systems at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


class Operator(Protocol):
    """The matrices A of all tiles, one per row: symmetric, with eigenvalues >= 1."""

    def __call__(self, p: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Writes ``A p`` to ``out`` and returns it; both ``[Z, C, K]``."""
        ...

    def diagonal(self) -> torch.Tensor:
        """``diag(A)``, ``[Z, C, K]``."""
        ...

    def matrices(self) -> torch.Tensor:
        """A itself, ``[Z, C, K, K]``, or ``[Z, 1, K, K]`` if all rows of a tile share it."""
        ...

    def select(self, tiles: torch.Tensor) -> Operator:
        """The operator of some tiles only, given their numbers ``[n]``."""
        ...


# Whatever solves A x = b as `conjugate_gradients` does, with its arguments and results.
Solve = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def conjugate_gradients(
    operator: Operator,
    b: torch.Tensor,
    max_steps: int,
    tolerance: float,
    preconditioner: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Solve ``A_i x_i = b_i`` for every row i.

    What differs from the textbook (Hestenes and Stiefel 1952):

    * It starts from ``x = b / diag(A)``, as MesaNet's does (arXiv 2506.05233, algorithm 1), not from 0.
    * Every row is divided by its largest entry first and x multiplied back, so that scaling b by any factor scales x by the same
      one. No constant is added to a denominator.
    * A row stops when ``||r|| <= tolerance ||b||`` (the paper: times the residual of the start), when rounding makes ``p'Ap`` negative or
      zero, or at once if b = 0. From then on it does not change; the call returns when no row is left. As ``A >= I``,
      ``||x - x*|| <= ||r||``.
    * NaN in a row or in its matrix makes that row NaN and stops it.
    * When no more than a quarter of the tiles has rows left, the others are put aside.

    Args:
        operator: The matrices.
        b: Right-hand sides ``[Z, C, K]``, any scale. Overwritten.
        max_steps: Most steps that a row may take; with 0 the start is all.
        tolerance: Relative residual at which a row stops.
        preconditioner: Diagonal of an approximate inverse, ``[Z, 1, K]``, > 0; None for the identity.

    Returns:
        ``x`` like b; ``iterations`` int32 and ``residual`` (relative, dtype of b), both ``[Z, C]``.
    """
    scale = b.abs().amax(-1, keepdim=True)
    r = b.div_(scale.masked_fill(scale == 0, 1))
    y, p, product = torch.empty_like(r), torch.zeros_like(r), torch.empty_like(r)

    def dot(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.mul(u, v, out=product).sum(-1, keepdim=True)

    def precondition(r: torch.Tensor, rr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``z = M r`` and ``r'z``."""
        if preconditioner is None:
            return r, rr
        z = r * preconditioner
        return z, dot(r, z)

    bb = dot(r, r)  # in [1, K], or 0, or NaN
    goal = bb * tolerance**2
    x = r / operator.diagonal()
    r.sub_(operator(x, y))
    rr = dot(r, r)
    z, rz = precondition(r, rr)
    active = (rr > goal) & (bb > 0)
    ratio = torch.zeros_like(rr)  # of p, in the next p
    iterations = torch.zeros_like(active, dtype=torch.int32)
    whole, tiles = (x, iterations, rr), None  # results of all tiles; which of them are being worked on, None for all
    for _ in range(max_steps):
        left = active.any(1).squeeze(-1)  # [Z]
        count = int(left.sum())
        if count == 0:
            break
        if count <= len(left) / 4:
            whole = _put_back((x, iterations, rr), whole, tiles)
            kept = left.nonzero().squeeze(-1)
            tiles = kept if tiles is None else tiles[kept]
            operator = operator.select(kept)
            x, iterations, r, p, rr, rz, ratio, goal, active = (
                t[kept] for t in (x, iterations, r, p, rr, rz, ratio, goal, active)
            )
            y, product = y[:count], product[:count]
            if preconditioner is not None:
                preconditioner = preconditioner[kept]
            z, _ = precondition(r, rr)
        torch.addcmul(z, p, ratio, out=p)
        operator(p, y)
        curvature = dot(p, y)
        active = active & ~(curvature <= 0)  # NaN goes on, so that it reaches x
        step = (rz / curvature).masked_fill_(~active, 0)
        x.addcmul_(p, step)
        r.addcmul_(y, step, value=-1)
        rr, rz_before = dot(r, r), rz
        z, rz = precondition(r, rr)
        iterations += active
        active = active & (rr > goal)
        ratio = (rz / rz_before).masked_fill_(~active, 0)
    x, iterations, rr = _put_back((x, iterations, rr), whole, tiles)
    residual = (rr / bb.masked_fill(bb == 0, 1)).sqrt_()
    # A row whose residual is NaN may have no more than some entries of x that are.
    return x.mul_(scale + (rr - rr)), iterations.squeeze(-1), residual.squeeze(-1)


def _put_back(
    part: tuple[torch.Tensor, ...], whole: tuple[torch.Tensor, ...], tiles: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    """Writes results of some tiles into those of all."""
    return part if tiles is None else tuple(w.index_copy_(0, tiles, t) for w, t in zip(whole, part, strict=True))
