"""The Mesa layer by its definition, in float64: every other implementation is tested against it."""

from __future__ import annotations

import torch


def naive_mesa_net_exact(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    lamb: torch.Tensor,
    beta: torch.Tensor,
    h_kk_init: torch.Tensor | None = None,
    h_kv_init: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The recurrence with an exact solve at every position (von Oswald et al., arXiv 2506.05233, section 2).

        H_t = exp(g_t) H_{t-1} + beta_t k_t k_t'
        G_t = exp(g_t) G_{t-1} + beta_t k_t v_t'
        o_t = G_t' (H_t + diag(lamb))^-1 q_t

    Everything is computed and returned in float64 and is differentiable in every argument. It keeps all T states
    (T * H * K * (K + V) * 8 bytes per sequence): for tests, not for training. The argument order is that of
    ``fla.ops.mesa_net.naive_mesa_net_exact``.

    Args:
        q: Queries ``[B, T, H, K]``, used as they are (no normalisation, no scale).
        k: Keys ``[B, T, H, K]``.
        v: Values ``[B, T, H, V]``.
        g: Logarithm of the forget gate, ``<= 0``, ``[B, T, H]``.
        lamb: Regularisation, ``> 0``, ``[H, K]``.
        beta: Input gate in ``[0, 1]``, ``[B, T, H]``.
        h_kk_init: Initial ``H_0``, ``[B, H, K, K]``; zero if None.
        h_kv_init: Initial ``G_0``, ``[B, H, K, V]``; zero if None.

    Returns:
        ``o [B, T, H, V]``, ``h_kk [B, H, K, K]``, ``h_kv [B, H, K, V]``, all float64.
    """
    q, k, v, g, lamb, beta = (x.double() for x in (q, k, v, g, lamb, beta))
    B, T, H, K = k.shape
    h = k.new_zeros(B, H, K, K) if h_kk_init is None else h_kk_init.double()
    G = k.new_zeros(B, H, K, v.shape[-1]) if h_kv_init is None else h_kv_init.double()
    ridge = torch.diag_embed(lamb)  # [H, K, K]
    outputs = []
    for t in range(T):
        decay = g[:, t, :, None, None].exp()
        weighted_key = (beta[:, t, :, None] * k[:, t])[..., None]  # [B, H, K, 1]
        h = decay * h + weighted_key * k[:, t, :, None, :]
        G = decay * G + weighted_key * v[:, t, :, None, :]
        x = torch.linalg.solve(h + ridge, q[:, t])  # [B, H, K]
        outputs.append(torch.einsum("bhkv,bhk->bhv", G, x))
    return torch.stack(outputs, dim=1), h, G
