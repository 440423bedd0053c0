"""The Mesa op without conjugate gradients: solved exactly, or not at all. What the sweep puts in the place of the op.

Both take the arguments of the op and of its decoding step that the layer passes, compute in float64 one position after the
other, and are for inference. Shapes: B batch, T time, H heads, K key size, V value size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from fla_mesa.ops import SolverStats
from fla_mesa.ops.backends import l2_normalize

Solve = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def exact(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a^-1 b`` for matrices ``a [B, H, K, K]`` and vectors ``b [B, H, K]``."""
    return torch.linalg.solve(a, b)


def start(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``b / diag(a)``: what the paper's solver starts from, and all it returns after zero steps."""
    return b / torch.diagonal(a, dim1=-2, dim2=-1)


@contextmanager
def mesa_solved_by(solve: Solve) -> Iterator[None]:
    """Every Mesa layer that runs inside solves its systems by ``solve``, and reports no iterations."""

    def over_sequences(
        q, k, v, g, beta, lamb, h_kk_init=None, h_kv_init=None, output_final_state=False, max_CG_iteration=30,
        use_qk_l2norm_in_kernel=False, cu_seqlens=None, cu_seqlens_cpu=None, *, cg_tolerance=1e-4, return_stats=False, backend=None,
    ):  # fmt: skip
        if cu_seqlens is not None:
            raise ValueError(f"cu_seqlens must be None, got {cu_seqlens!r}: the dense solve takes no packed sequences")
        if use_qk_l2norm_in_kernel:
            q, k = l2_normalize(q), l2_normalize(k)
        outputs = []
        h, G = h_kk_init, h_kv_init
        for t in range(q.shape[1]):
            o, h, G = _step(q[:, t], k[:, t], v[:, t], g[:, t], lamb, beta[:, t], h, G, solve)
            outputs.append(o)
        return torch.stack(outputs, dim=1).to(v.dtype), h, G, _no_steps(g)

    def one_step(
        q, k, v, g, lamb, beta, prev_h_kk, prev_h_kv, max_CG_iteration=30, *, cg_tolerance=1e-4, return_stats=False, backend=None
    ):  # fmt: skip
        o, h, G = _step(q, k, v, g, lamb, beta, prev_h_kk, prev_h_kv, solve)
        return o.to(v.dtype), h, G, _no_steps(g)

    with patch.multiple("fla_mesa.layers.mesa_net", chunk_mesa_net=over_sequences, mesa_net_decoding_one_step=one_step):
        yield


def _step(q, k, v, g, lamb, beta, h, G, solve: Solve) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One position: ``o [B, H, V]`` and the new states ``[B, H, K, K]``, ``[B, H, K, V]``, all float64."""
    q, k, v, g, lamb, beta = (x.double() for x in (q, k, v, g, lamb, beta))
    decay, weighted_key = g.exp()[..., None, None], (beta[..., None] * k)[..., None]
    h_new, G_new = weighted_key * k[..., None, :], weighted_key * v[..., None, :]
    if h is not None:
        h_new, G_new = h_new + decay * h.double(), G_new + decay * G.double()
    x = solve(h_new + torch.diag_embed(lamb), q)
    return torch.einsum("bhkv,bhk->bhv", G_new, x), h_new, G_new


def _no_steps(g: torch.Tensor) -> SolverStats:
    return SolverStats(torch.zeros_like(g, dtype=torch.int32), torch.zeros_like(g, dtype=torch.float32))
