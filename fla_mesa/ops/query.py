"""Reading the Mesa state without a step: many queries on one fixed state."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.autograd.function import once_differentiable

from fla_mesa.ops.backends import Backend, choose_backend
from fla_mesa.ops.checks import check_query
from fla_mesa.ops.opaque import opaque
from fla_mesa.ops.types import SolverStats


class _MesaNetQuery(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, h_kk, h_kv, lamb, backend: Backend, options: dict):
        with torch.autocast(q.device.type, enabled=False):
            out = backend.query_forward(q, h_kk, h_kv, lamb, **options)
        ctx.save_for_backward(h_kk, h_kv, lamb, out.x)
        ctx.backend, ctx.options, ctx.q_dtype = backend, options, q.dtype
        ctx.mark_non_differentiable(out.iterations, out.residual)
        ctx.set_materialize_grads(False)
        return out.o, out.iterations, out.residual

    @staticmethod
    @once_differentiable
    def backward(ctx, do, *_):
        if do is None:
            return (None,) * 6
        h_kk, h_kv, lamb, x = ctx.saved_tensors
        with torch.autocast(do.device.type, enabled=False):
            d = ctx.backend.query_backward(h_kk, h_kv, lamb, x, do, **ctx.options)
        states = (dh.to(h.dtype) for dh, h in zip(d[1:], (h_kk, h_kv, lamb), strict=True))
        return d.q.to(ctx.q_dtype), *states, None, None


@opaque
def mesa_net_query(
    q: torch.Tensor,
    h_kk: torch.Tensor,
    h_kv: torch.Tensor,
    lamb: torch.Tensor,
    max_CG_iteration: int = 30,
    *,
    cg_tolerance: float | None = None,
    return_stats: bool = False,
    backend: str | None = None,
) -> Any:
    """Query states returned by :func:`fla_mesa.ops.chunk_mesa_net` without changing them.

        o_t = G' (H + diag(lamb))^-1 q_t

    What ``chunk_mesa_net`` gives for keys, values and log gates of zero, at the cost of the reads alone. Solver and gradients (in every
    argument) are as there.

    Args:
        q: Queries ``[B, T, H, K]``, used as they are: normalise them first if the layer does.
        h_kk: State H, symmetric, ``[B, H, K, K]``, float32 or float64.
        h_kv: State G, ``[B, H, K, V]``.
        lamb: Regularisation, ``> 0``, ``[H, K]``.
        max_CG_iteration, cg_tolerance: As for the op over sequences.
        return_stats: Whether to return a :class:`~fla_mesa.ops.types.SolverStats` of shape ``[B, T, H]`` as well.
        backend: ``"pytorch"``, ``"exact"``, ``"diagonal"``, or None for "pytorch"; there are no kernels for this read.

    Returns:
        o ``[B, T, H, V]`` in the dtype of q or, with ``return_stats``, ``(o, stats)``.

    Raises:
        ValueError, TypeError: An argument is not as above; the message names it, what came, and what is allowed.
    """
    check_query(q, h_kk, h_kv, lamb, max_CG_iteration, cg_tolerance)
    tensors = {"q": q, "h_kk": h_kk, "h_kv": h_kv, "lamb": lamb}
    chosen = choose_backend(backend, "query", tensors, max_steps=max_CG_iteration, tolerance=cg_tolerance)
    tolerance = chosen.TOLERANCE if cg_tolerance is None else float(cg_tolerance)
    options = {"max_steps": max_CG_iteration, "tolerance": tolerance}
    o, *stats = cast("tuple[torch.Tensor, ...]", _MesaNetQuery.apply(q, h_kk, h_kv, lamb, chosen, options))
    return (o, SolverStats(*stats)) if return_stats else o
