"""Gated KalmaNet by its definition, in float64."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def naive_gka_exact(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    alpha: Tensor,
    *,
    ridge_ratio: float = 0.02,
    initial_state: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    r"""The recurrence with an exact solve at every position (Peng et al., arXiv 2511.21016, section 4).

    .. math::
        H_t = e^{g_t} H_{t-1} + \beta_t k_t k_t^\top, \qquad
        U_t = e^{g_t} U_{t-1} + \beta_t k_t v_t^\top, \qquad
        \lambda_t = a \|H_t\|_F \\
        x_t = (H_t + \lambda_t I)^{-1} q_t, \qquad
        o_t = U_t^\top (\alpha_t x_t + (1 - \alpha_t) q_t)

    Where H is zero, x is. Differentiable in every argument, also through lambda; it keeps all states: for tests.

    Args:
        q, k: Queries and keys ``[B, T, H, K]``, used as they are.
        v: Values ``[B, T, H, V]``.
        g: Logarithm of the forget gate, ``[B, T, H]``.
        beta: Weight of a position, ``[B, T, H]``.
        alpha: Part of the solution in what reads U, ``[B, T, H]``; 0 is gated linear attention.
        ridge_ratio: a.
        initial_state: H ``[B, H, K, K]`` and U ``[B, H, K, V]``; zero if None.

    Returns:
        ``o [B, T, H, V]`` and the final state, all float64.
    """
    q, k, v, g, beta, alpha = (x.double() for x in (q, k, v, g, beta, alpha))
    B, T, H, K = k.shape
    zero = k.new_zeros(B, H, K, K), k.new_zeros(B, H, K, v.shape[-1])
    h, u = zero if initial_state is None else (x.double() for x in initial_state)
    eye, outputs = torch.eye(K, dtype=k.dtype, device=k.device), []
    for t in range(T):
        decay, key = g[:, t, :, None, None].exp(), (beta[:, t, :, None] * k[:, t])[..., None]
        h = decay * h + key * k[:, t, :, None, :]
        u = decay * u + key * v[:, t, :, None, :]
        square = h.square().sum((-1, -2))
        empty = square == 0
        ridge = ridge_ratio * square.masked_fill(empty, 1).sqrt()
        x = torch.linalg.solve(h + ridge[..., None, None] * eye, q[:, t]).masked_fill(empty[..., None], 0)
        part = alpha[:, t, :, None]
        outputs.append(torch.einsum("bhkv,bhk->bhv", u, part * x + (1 - part) * q[:, t]))
    return torch.stack(outputs, 1), (h, u)
