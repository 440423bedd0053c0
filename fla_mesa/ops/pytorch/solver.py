"""Conjugate gradients on many small systems at once."""

from __future__ import annotations

from collections.abc import Callable

import torch

Operator = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


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

    Args:
        operator: ``operator(p, out)`` writes ``A p`` to ``out`` and returns it; ``p`` and ``out`` have the shape of b.
        b: Right-hand sides ``[..., C, K]``, any scale. Overwritten.
        max_steps: Most steps that a row may take.
        tolerance: Relative residual at which a row stops.

    Returns:
        ``x`` like b; ``iterations`` int32 and ``residual`` (relative, dtype of b), both ``[..., C]``.
    """
    scale = torch.linalg.vector_norm(b, ord=torch.inf, dim=-1, keepdim=True)
    zero = scale == 0
    r = b.div_(scale.masked_fill(zero, 1))
    x, y, p, product = torch.zeros_like(r), torch.empty_like(r), r.clone(), torch.empty_like(r)
    b_norm = torch.linalg.vector_norm(r, dim=-1, keepdim=True)  # in [1, sqrt(K)], or 0, or NaN
    r_norm, active = b_norm, b_norm > 0
    iterations = torch.zeros_like(active, dtype=torch.int32)
    for _ in range(max_steps):
        operator(p, y)
        curvature = torch.mul(p, y, out=product).sum(-1, keepdim=True)
        active = active & ~(curvature <= 0)  # NaN goes on, so that it reaches x
        step = torch.where(active, r_norm.square() / curvature, 0)
        x.addcmul_(p, step)
        r.addcmul_(y, step, value=-1)
        last_norm, r_norm = r_norm, torch.linalg.vector_norm(r, dim=-1, keepdim=True)
        iterations += active
        active = active & (r_norm > tolerance * b_norm)
        if not active.any():
            break
        torch.addcmul(r, p, torch.where(active, (r_norm / last_norm).square(), 0), out=p)
    residual = r_norm / b_norm.masked_fill(zero, 1)
    return x.mul_(scale), iterations.squeeze(-1), residual.squeeze(-1)
