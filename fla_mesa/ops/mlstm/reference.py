"""mLSTM by its definition, in float64."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def naive_mlstm(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, i: Tensor, *, initial_state: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    r"""The recurrence without a stabiliser (Beck et al., arXiv 2405.04517, equations 19-27; arXiv 2506.05233, table 1).

    .. math::
        G_t = e^{g_t} G_{t-1} + e^{i_t} k_t v_t^\top, \qquad
        z_t = e^{g_t} z_{t-1} + e^{i_t} k_t, \qquad
        o_t = \frac{G_t^\top q_t}{\max(|z_t^\top q_t|, 1)}

    Args:
        q, k: Queries and keys ``[B, T, H, K]``, used as they are.
        v: Values ``[B, T, H, V]``.
        g: Logarithm of the forget gate, ``[B, T, H]``.
        i: Logarithm of the input gate, of any sign, ``[B, T, H]``.
        initial_state: G ``[B, H, K, V]`` and z ``[B, H, K]``; zero if None.

    Returns:
        ``o [B, T, H, V]`` and the final state, all float64.
    """
    q, k, v, g, i = (x.double() for x in (q, k, v, g, i))
    B, T, H, K = k.shape
    zero = k.new_zeros(B, H, K, v.shape[-1]), k.new_zeros(B, H, K)
    G, z = zero if initial_state is None else (x.double() for x in initial_state)
    outputs = []
    for t in range(T):
        decay, key = g[:, t, :, None].exp(), i[:, t, :, None].exp() * k[:, t]
        G = decay[..., None] * G + key[..., None] * v[:, t, :, None, :]
        z = decay * z + key
        size = (z * q[:, t]).sum(-1, keepdim=True).abs().clamp(min=1)
        outputs.append(torch.einsum("bhkv,bhk->bhv", G, q[:, t]) / size)
    return torch.stack(outputs, 1), (G, z)
