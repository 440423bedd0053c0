"""The Mesa op for one new position per sequence, for decoding."""

from __future__ import annotations

from typing import Any

import torch

from fla_mesa.ops.backends import choose_backend
from fla_mesa.ops.checks import check_step
from fla_mesa.ops.opaque import opaque
from fla_mesa.ops.types import SolverStats


@opaque
def mesa_net_decoding_one_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    lamb: torch.Tensor,
    beta: torch.Tensor,
    prev_h_kk: torch.Tensor,
    prev_h_kv: torch.Tensor,
    max_CG_iteration: int = 30,
    *,
    cg_tolerance: float | None = None,
    return_stats: bool = False,
    backend: str | None = None,
) -> tuple[Any, ...]:
    """One step of :func:`fla_mesa.ops.chunk_mesa_net` from given states, without gradients.

    The arguments before the ``*`` are those of ``fla.ops.mesa_net.mesa_net_decoding_one_step``, in its order (lamb before beta). q and
    k are used as they are: normalise them first if the layer does. Steps are those of the paper's algorithm 1, as fla takes them here:
    n are the same n, whatever lamb is.

    Args:
        q: Query ``[B, H, K]``.
        k: Key ``[B, H, K]``.
        v: Value ``[B, H, V]``.
        g: Logarithm of the forget gate, ``<= 0``, ``[B, H]``.
        lamb: Regularisation, ``> 0``, ``[H, K]``.
        beta: Input gate in ``[0, 1]``, ``[B, H]``.
        prev_h_kk: State H so far, symmetric, ``[B, H, K, K]``, float32 or float64.
        prev_h_kv: State G so far, ``[B, H, K, V]``.
        max_CG_iteration, cg_tolerance, return_stats, backend: As for the op over sequences.

    Returns:
        ``(o, h_kk, h_kv)`` or ``(o, h_kk, h_kv, stats)``: o ``[B, H, V]`` in the dtype of v, new states of the shape and dtype of the
        old ones (which are left as they are), stats of shape ``[B, H]``.

    Raises:
        ValueError, TypeError: An argument is not as above; the message names it, what came, and what is allowed.
    """
    check_step(q, k, v, g, beta, lamb, prev_h_kk, prev_h_kv, max_CG_iteration, cg_tolerance)
    tensors = {
        "q": q,
        "k": k,
        "v": v,
        "g": g,
        "beta": beta,
        "lamb": lamb,
        "prev_h_kk": prev_h_kk,
        "prev_h_kv": prev_h_kv,
    }
    chosen = choose_backend(backend, "step", tensors, max_steps=max_CG_iteration, tolerance=cg_tolerance)
    tolerance = chosen.TOLERANCE if cg_tolerance is None else float(cg_tolerance)
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        out = chosen.decoding_step(
            q, k, v, g, beta, lamb, prev_h_kk, prev_h_kv, max_steps=max_CG_iteration, tolerance=tolerance
        )
    states = out.h_kk, out.h_kv
    return (out.o, *states, SolverStats(out.iterations, out.residual)) if return_stats else (out.o, *states)
