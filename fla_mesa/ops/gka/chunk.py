"""Gated KalmaNet's op in chunks, in PyTorch on any device."""

from __future__ import annotations

import math
from typing import Any, cast

import torch

from fla_mesa.ops.checks import check_sequences, check_state
from fla_mesa.ops.pytorch.problem import accumulation_dtype
from fla_mesa.ops.pytorch.segments import CHUNK_SIZE
from fla_mesa.ops.pytorch.sums import Decays, Sums, cumulative, gated
from fla_mesa.ops.pytorch.tiles import Tiles

Tensor = torch.Tensor
States = tuple[Tensor, Tensor]


def chunk_gka(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    alpha: Tensor,
    *,
    ridge_ratio: float = 0.02,
    num_iter: int = 30,
    initial_state: States | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, States | None]:
    """Ridge regression on the whole past, with a ridge that grows with it (Peng et al., arXiv 2511.21016, section 4).

    ::

        H_t = e^g_t H_{t-1} + beta_t k_t k_t'     U_t = e^g_t U_{t-1} + beta_t k_t v_t'     lambda_t = a ||H_t||_F
        x_t ~ (H_t + lambda_t I)^-1 q_t           o_t = U_t' (alpha_t x_t + (1 - alpha_t) q_t)

    x is what so many Chebyshev iterations give, from the start ``2 q / (L + mu)`` with the bounds ``mu = lambda_t`` and
    ``L = lambda_t + ||H_t||_F``. The weights of the iterations start at 2, as in the paper's appendix B; its algorithm 1 has a 0 there.
    Where H is zero, x is.

    Gradients are those of the exact solution, by a second solve (appendix B.2), lambda's dependence on H included. For q they are
    those of the iterations, too (lemma 2); for the others the two differ by what the iterations leave unsolved, some 1e-4 at 30.

    The paper has no beta: that is 1. That of fla's layer, which multiplies keys and values by a gate b, is ``beta = b^2``.

    Args:
        q, k: Queries and keys ``[B, T, H, K]``, used as they are.
        v: Values ``[B, T, H, V]``.
        g: Logarithm of the forget gate, <= 0, ``[B, T, H]``.
        beta: Weight of a position, >= 0, ``[B, T, H]``.
        alpha: Part of the solution in what reads U, ``[B, T, H]``.
        ridge_ratio: a, > 0. The condition of every system is at most ``(a + 1) / a``.
        num_iter: Iterations, >= 1.
        initial_state: H ``[N, H, K, K]`` and U ``[N, H, K, V]`` before each sequence; zero if None.
        output_final_state: Whether to return those after it.
        cu_seqlens: Boundaries of packed sequences ``[N + 1]`` (then B = 1), or None for B sequences.

    Returns:
        ``o [B, T, H, V]`` in the dtype of v, and the final state in float32 (float64 for float64), or None.

    Raises:
        ValueError, TypeError: An argument has another shape or type, or is out of range.
    """
    N = check_sequences(q, k, v, {"g": g, "beta": beta, "alpha": alpha}, cu_seqlens)
    check_options(ridge_ratio, num_iter)
    (B, T, H, K), V = k.shape, v.shape[-1]
    dtype = accumulation_dtype(k)
    initial = None
    if initial_state is not None:
        for name, state, size in zip(("initial_state[0]", "initial_state[1]"), initial_state, (K, V), strict=True):
            check_state(name, state, (N, H, K, size), q)
        initial = torch.cat([state.to(dtype) for state in initial_state], -1)

    tiles = Tiles(B, T, H, CHUNK_SIZE, None if cu_seqlens is None else cu_seqlens.tolist(), k.device)
    q_, k_, v_, beta_, alpha_ = (tiles.split(x.to(dtype)) for x in (q, k, v, beta, alpha))
    decays = gated(cumulative(tiles, g), beta_)
    sums = Sums(tiles, k_, torch.cat([k_, v_], -1), decays, initial)
    norm = _frobenius(k_, decays, sums.before[..., :K])
    x = _solve(q_, k_, decays, sums.before[..., :K], norm, ridge_ratio, num_iter)
    alpha_ = alpha_[..., None]
    o = tiles.join(sums.read(alpha_ * x + (1 - alpha_) * q_)[..., K:]).to(v.dtype)
    return o, (sums.final[..., :K], sums.final[..., K:]) if output_final_state else None


def check_options(ridge_ratio: float, num_iter: int, name: str = "num_iter") -> None:
    """Checks the ridge and the number of iterations; `name` is the caller's name for the latter.

    Raises:
        ValueError: One is out of range.
    """
    if not 0 < ridge_ratio < math.inf:
        raise ValueError(f"ridge_ratio must be a finite number > 0; got {ridge_ratio!r}")
    if isinstance(num_iter, bool) or not isinstance(num_iter, int) or num_iter < 1:
        raise ValueError(f"{name} must be an integer >= 1; got {num_iter!r}")


def _frobenius(k: Tensor, decays: Decays, before: Tensor) -> Tensor:
    """``||H_t||_F [Z, C, 1]``, from the products of its terms with each other; no term is negative.

    With ``H_t = e_t H_0 + sum_s M_ts k_s k_s'``: ``e_t^2 ||H_0||^2 + 2 e_t sum_s M_ts k_s'H_0 k_s + sum_rs M_tr M_ts (k_r'k_s)^2``.
    """
    inner, entry = decays.inner, decays.entry.squeeze(-1)
    forms = ((k @ before) * k).sum(-1, keepdim=True)  # k_s'H_0 k_s
    pairs = (k @ k.mT).square()
    square = entry.square() * before.square().sum((-1, -2))[:, None]
    square = square + 2 * entry * (inner @ forms).squeeze(-1) + ((inner @ pairs) * inner).sum(-1)
    empty = square <= 0
    return square.masked_fill(empty, 1).sqrt().masked_fill(empty, 0)[..., None]


def _solve(
    q: Tensor, k: Tensor, decays: Decays, before: Tensor, norm: Tensor, ridge_ratio: float, num_iter: int
) -> Tensor:
    """``(H + a ||H|| I)^-1 q [Z, C, K]``, differentiable in everything that H and q depend on.

    x is found without a record; then ``x + A^-1 (q - A x)``, of which only the second term's gradient is taken, has the gradients of
    ``A^-1 q`` in q and in A.
    """
    with torch.no_grad():
        system = _System.of(k, decays, before, norm)
        x = system.solve(q, ridge_ratio, num_iter)
    if not torch.is_grad_enabled():
        return x
    product = torch.baddbmm((x @ k.mT * decays.inner) @ k, x * decays.entry, before)
    residual = q - product - ridge_ratio * norm * x
    return cast("Tensor", _Correction.apply(residual, x, ridge_ratio, num_iter, *system))


class _System(tuple[Tensor, Tensor, Tensor, Tensor, Tensor]):
    """``H / ||H||`` at every position: k, M / ||H||, entry / ||H||, the states before the tiles, and 1 / ||H|| (0 if H is 0)."""

    @classmethod
    def of(cls, k: Tensor, decays: Decays, before: Tensor, norm: Tensor) -> _System:
        scale = norm.reciprocal().masked_fill(norm == 0, 0)
        return cls((k, decays.inner * scale, decays.entry * scale, before.contiguous(), scale))

    def solve(self, q: Tensor, ridge_ratio: float, num_iter: int) -> Tensor:
        """Chebyshev's iteration for ``(H / ||H|| + a) y = q``, whose eigenvalues lie in [a, a + 1] everywhere; then x = y / ||H||."""
        k, inner, entry, before, scale = self
        step, rho = 2 / (1 + 2 * ridge_ratio), 1 / (1 + 2 * ridge_ratio)
        x_before, x, weight = torch.zeros_like(q), step * q, 2.0
        for _ in range(num_iter):
            weight = 4 / (4 - rho**2 * weight)
            y = torch.baddbmm((x @ k.mT).mul_(inner) @ k, x * entry, before)
            # x + weight (step (q - y - a x)) + (weight - 1) (x - x_before)
            x_before.mul_(1 - weight).add_(x, alpha=weight * (1 - step * ridge_ratio))
            x_before.add_(y.sub_(q), alpha=-weight * step)
            x, x_before = x_before, x
        return x * scale


class _Correction(torch.autograd.Function):
    """``x``, with the gradient of ``x + A^-1 residual`` with respect to the residual."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, ridge_ratio: float, num_iter: int, *system: Tensor):
        ctx.options = ridge_ratio, num_iter
        ctx.save_for_backward(*system)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        d_residual = _System(ctx.saved_tensors).solve(grads[0], *ctx.options)
        return d_residual, *(None,) * 8
