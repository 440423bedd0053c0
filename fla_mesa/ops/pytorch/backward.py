"""Backward pass of the Mesa op in PyTorch, by implicit differentiation.

With ``x_t = (H_t + I)^-1 q_t`` and ``o_t = G_t'x_t``, a second solve ``y_t = (H_t + I)^-1 G_t do_t`` gives ``dq_t = y_t``; every other
gradient is that of the two linear attentions ``sum_t do_t.(G_t'x_t) - y_t.(H_t x_t)`` with x and y held fixed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fla_mesa.ops.checks import check_gradients
from fla_mesa.ops.pytorch.nonfinite import Nonfinite
from fla_mesa.ops.pytorch.problem import Problem, States
from fla_mesa.ops.pytorch.segments import Run, plan
from fla_mesa.ops.pytorch.solver import Solve, conjugate_gradients
from fla_mesa.ops.pytorch.states import scan_adjoints
from fla_mesa.ops.types import ChunkGradients


def chunk_backward(
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    lamb: torch.Tensor,
    h_kk_init: torch.Tensor | None,
    h_kv_init: torch.Tensor | None,
    x: torch.Tensor,
    do: torch.Tensor,
    dh_kk: torch.Tensor | None,
    dh_kv: torch.Tensor | None,
    *,
    cu_seqlens: torch.Tensor | None,
    cu_seqlens_cpu: torch.Tensor | None,
    max_steps: int,
    tolerance: float,
    solve: Solve = conjugate_gradients,
) -> ChunkGradients:
    """Gradients of :func:`fla_mesa.ops.pytorch.forward.chunk_forward`.

    Args:
        x: The solution that the forward pass returned, ``[B, T, H, K]``.
        do, dh_kk, dh_kv: Gradients of the output ``[B, T, H, V]`` and of the final states ``[N, H, K, K]``, ``[N, H, K, V]`` or None.
    """
    if solve is conjugate_gradients:
        check_gradients(max_steps)
    boundaries = cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu
    nonfinite = Nonfinite(k, v, g, beta, cu_seqlens)
    do = nonfinite.mark(do, channels=True)
    k, v, g, beta = nonfinite.clean(k, v, g, beta)
    dq, dk, dv, dg, dbeta = (t.new_empty(t.shape, dtype=x.dtype) for t in (x, k, v, g, beta))
    dlamb = torch.zeros_like(lamb, dtype=x.dtype)
    dh_kk_init = None if h_kk_init is None else torch.empty_like(h_kk_init, dtype=x.dtype)
    dh_kv_init = None if h_kv_init is None else torch.empty_like(h_kv_init, dtype=x.dtype)
    for run in plan((k.shape[0], k.shape[1], k.shape[2]), max(k.shape[-1], v.shape[-1]), boundaries, k.device):
        sequences = run[0].sequences
        initial = None if h_kk_init is None or h_kv_init is None else (h_kk_init[sequences], h_kv_init[sequences])
        adjoint = None if dh_kk is None or dh_kv is None else (dh_kk[sequences], dh_kv[sequences])
        starts = _states_before(run, k, v, g, beta, lamb, initial)
        for segment, start in zip(reversed(run), reversed(starts), strict=True):
            problem = Problem(segment, k, v, g, beta, lamb, start)
            d = _segment_backward(problem, x, do, adjoint, max_steps, tolerance, solve)
            place = segment.place
            dq[place], dk[place], dv[place], dg[place], dbeta[place] = d.q, d.k, d.v, d.g, d.beta
            dlamb += d.lamb
            adjoint = d.states
        if dh_kk_init is not None and dh_kv_init is not None and adjoint is not None:
            dh_kk_init[sequences], dh_kv_init[sequences] = adjoint
    return ChunkGradients(dq, dk, dv, dg, dbeta, dlamb, dh_kk_init, dh_kv_init)


def _states_before(
    run: Run,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    lamb: torch.Tensor,
    initial: States | None,
) -> list[States | None]:
    """The states before each segment of a run, recomputed because that is cheaper than storing them."""
    starts = [initial]
    for segment in run[:-1]:
        starts.append(Problem(segment, k, v, g, beta, lamb, starts[-1]).last_states())
    return starts


class _SegmentGradients(NamedTuple):
    """As :class:`ChunkGradients`, for one segment; ``states`` are those of the states before it."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    lamb: torch.Tensor
    states: States


def _segment_backward(
    problem: Problem,
    x: torch.Tensor,
    do: torch.Tensor,
    adjoint: States | None,
    max_steps: int,
    tolerance: float,
    solve: Solve,
) -> _SegmentGradients:
    """Gradients of one segment, given x and do of the whole call and the gradient of the states after the segment."""
    tiles, k, v, beta, K = problem.tiles, problem.k, problem.v, problem.beta, problem.k.shape[-1]
    norm = problem.unit.reciprocal()  # lamb^1/2
    x, do = tiles.split(x[problem.place] * norm), problem.split(do)
    before = problem.states_before()
    decay, entry = problem.inner_decay(), problem.entry_decay
    inner = decay * beta.mT  # M

    # The second solve.
    value_scores = torch.bmm(do, v.mT)  # do_t . v_s
    dx = torch.bmm(value_scores * inner, k).baddbmm_(do * entry, before[..., K:].mT)
    y = solve(problem.operator(inner, before[..., :K]), dx, max_steps, tolerance)[0]

    # What stays inside a tile.
    x_scores = torch.bmm(x, k.mT)
    d_scores = value_scores.baddbmm_(y, k.mT, alpha=-1)  # do_t . v_s - y_t . k_s
    weighted = x_scores * inner
    dv = torch.bmm(weighted.mT, do)
    dk = torch.bmm(inner.mul_(d_scores).mT, x).baddbmm_(weighted.mT, y, alpha=-1)
    d_decay = x_scores.mul_(d_scores).mul_(decay)  # what beta_s exp(a_t - a_s) receives, times that decay
    dbeta = d_decay.sum(1)
    # exp(a_t - a_s) pulls a_t up and a_s down; the diagonal does neither.
    d_decay = d_decay.mul_(beta.mT).tril_(-1)
    da = d_decay.sum(2) - d_decay.sum(1)

    # What comes through the state before a tile: o_t and y_t see exp(a_t) x_t' [H_0 | G_0], and it receives
    # exp(a_t) (-y_t x_t' | x_t do_t'). The first half of that is kept transposed, to be one product with the second; H is symmetric, so
    # that only dh_kk, which comes and goes, needs to know.
    x_decayed, d_state = x * entry, torch.cat([-y, do], -1)
    asked = torch.bmm(x_decayed.mT, d_state)
    da += torch.bmm(x_decayed, before).mul_(d_state).sum(-1)
    final = None
    if adjoint is not None:
        dh_kk, dh_kv = (h.to(problem.dtype) for h in adjoint)
        final = torch.cat([norm[:, :, None] * dh_kk.mT * norm[:, None, :], norm[:, :, None] * dh_kv], -1)
    adjoints = scan_adjoints(tiles, asked, problem.tile_decay, final)

    # What goes through the state after a tile, whose gradient is [dH | dG], [Z, K, K + V].
    after, weight = tiles.after(adjoints), problem.exit_decay * beta
    rows = torch.bmm(k, after[..., :K].mT).baddbmm_(v, after[..., K:].mT)  # dH k_s + dG v_s
    columns = torch.bmm(k, after)  # dH'k_s | dG'k_s
    d_weight = (k * rows).sum(-1)
    dk.addcmul_(rows.add_(columns[..., :K]), weight)
    dv.addcmul_(columns[..., K:], weight)
    dbeta.addcmul_(problem.exit_decay.squeeze(-1), d_weight)
    d_exit = d_weight.mul_(weight.squeeze(-1))
    da -= d_exit
    da[:, -1] += d_exit.sum(-1) + after.mul_(before).sum((-1, -2)) * problem.tile_decay

    unit = problem.unit
    first = tiles.join_states(adjoints[:, tiles.first_slots])
    return _SegmentGradients(
        q=problem.join_scaled(y),
        k=problem.join_scaled(dk),
        v=tiles.join(dv),
        g=tiles.join(da.flip(-1).cumsum(-1).flip(-1)),
        beta=tiles.join(dbeta),
        lamb=-(x * y).sum(1).unflatten(0, (tiles.batch, tiles.heads, -1)).sum((0, 2)) * unit.square(),
        states=(unit[:, :, None] * first[..., :K].mT * unit[:, None, :], unit[:, :, None] * first[..., K:]),
    )
