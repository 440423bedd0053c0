"""Backward pass of the Mesa op in PyTorch, by implicit differentiation.

With ``x_t = (H_t + I)^-1 q_t`` and ``o_t = G_t'x_t``, a second solve ``y_t = (H_t + I)^-1 G_t do_t`` gives ``dq_t = y_t``; every other
gradient is that of the two linear attentions ``sum_t do_t.(G_t'x_t) - y_t.(H_t x_t)`` with x and y held fixed.
"""

from __future__ import annotations

import torch

from fla_mesa.ops.pytorch.nonfinite import Nonfinite
from fla_mesa.ops.pytorch.problem import Problem
from fla_mesa.ops.pytorch.solver import conjugate_gradients
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
) -> ChunkGradients:
    """Gradients of :func:`fla_mesa.ops.pytorch.forward.chunk_forward`.

    Args:
        x: The solution that the forward pass returned, ``[B, T, H, K]``.
        do, dh_kk, dh_kv: Gradients of the output ``[B, T, H, V]`` and of the final states ``[N, H, K, K]``, ``[N, H, K, V]`` or None.
    """
    boundaries = cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu
    nonfinite = Nonfinite(k, v, g, beta, cu_seqlens)
    do = nonfinite.mark(do, channels=True)
    k, v, g, beta = nonfinite.clean(k, v, g, beta)
    problem = Problem(k, v, g, beta, lamb, h_kk_init, h_kv_init, boundaries)
    tiles, dtype, K = problem.tiles, problem.dtype, k.shape[-1]
    norm = problem.unit.reciprocal()  # lamb^1/2
    x, do = tiles.split(x.to(dtype) * norm), tiles.split(do.to(dtype))
    y, dk, dv = torch.empty_like(x), torch.empty_like(x), torch.empty_like(do)
    dbeta, da = torch.empty_like(problem.beta), torch.empty_like(problem.beta)
    asked = x.new_empty(len(x), K, K + v.shape[-1])

    for group in problem.groups():  # the second solve, and what stays inside a tile
        k_, v_, x_, do_ = problem.k[group], problem.v[group], x[group], do[group]
        decay, entry = problem.inner_decay(group), problem.entry_decay(group)
        inner = decay * problem.beta[group].unsqueeze(-2)  # M
        states = problem.states_at(problem.states, group)
        value_scores = torch.bmm(do_, v_.mT)  # do_t . v_s
        dx = torch.bmm(value_scores * inner, k_).baddbmm_(do_ * entry, states[..., K:].mT)
        y_ = conjugate_gradients(problem.operator(group, inner, states[..., :K]), dx, max_steps, tolerance)[0]
        y[group] = y_
        x_scores = torch.bmm(x_, k_.mT)
        d_scores = value_scores.baddbmm_(y_, k_.mT, alpha=-1)  # do_t . v_s - y_t . k_s
        weighted = x_scores * inner
        dv[group] = torch.bmm(weighted.mT, do_)
        dk[group] = torch.bmm((d_scores * inner).mT, x_).baddbmm_(weighted.mT, y_, alpha=-1)
        d_decay = x_scores.mul_(d_scores).mul_(decay)  # what beta_s exp(a_t - a_s) receives, times that decay
        dbeta[group] = d_decay.sum(1)
        # exp(a_t - a_s) pulls a_t up and a_s down; the diagonal does neither.
        d_decay = d_decay.mul_(problem.beta[group].unsqueeze(-2)).tril_(-1)
        # Through the state before the tile: o_t and y_t see exp(a_t) x_t' [H_0 | G_0], and it receives exp(a_t) (-y_t x_t' | x_t do_t').
        # Its first half is kept transposed, to be one product with the second; H is symmetric, so that only dh_kk, which comes and
        # goes, needs to know.
        x_decayed, d_state = x_ * entry, torch.cat([-y_, do_], -1)
        da[group] = d_decay.sum(2) - d_decay.sum(1) + torch.bmm(x_decayed, states).mul_(d_state).sum(-1)
        torch.bmm(x_decayed.mT, d_state, out=asked[group])

    final = None
    if dh_kk is not None and dh_kv is not None:
        final = torch.cat(
            [norm[:, :, None] * dh_kk.to(dtype).mT * norm[:, None, :], norm[:, :, None] * dh_kv.to(dtype)], -1
        )
    decay = problem.a[:, -1].exp().to(dtype)
    adjoints = scan_adjoints(tiles, asked, decay, final)

    for group in problem.groups():  # what goes through the state after a tile
        k_, v_ = problem.k[group], problem.v[group]
        adjoint = problem.states_at(adjoints, group, after=True)  # [dH | dG], [Z, K, K + V]
        exit_decay, weight = problem.exit_decay(group), problem.exit_weight(group)
        rows = torch.bmm(k_, adjoint[..., :K].mT).baddbmm_(v_, adjoint[..., K:].mT)  # dH k_s + dG v_s
        columns = torch.bmm(k_, adjoint)  # dH'k_s | dG'k_s
        dk[group] += weight * (rows + columns[..., :K])
        dv[group] += weight * columns[..., K:]
        d_weight = (k_ * rows).sum(-1)
        dbeta[group] += exit_decay.squeeze(-1) * d_weight
        d_exit = weight.squeeze(-1) * d_weight
        kept = adjoint.mul_(problem.states_at(problem.states, group)).sum((-1, -2)) * decay[group]
        da[group] -= d_exit
        da[group, -1] += d_exit.sum(-1) + kept

    unit = problem.unit
    dh_kk_init = dh_kv_init = None
    if h_kk_init is not None:
        first = tiles.join_states(adjoints[:, [tiles.slot[j] for j in tiles.begin]])
        dh_kk_init = unit[:, :, None] * first[..., :K].mT * unit[:, None, :]
        dh_kv_init = unit[:, :, None] * first[..., K:]
    return ChunkGradients(
        q=problem.join_scaled(y),
        k=problem.join_scaled(dk),
        v=tiles.join(dv),
        g=tiles.join(da.flip(-1).cumsum(-1).flip(-1)),
        beta=tiles.join(dbeta),
        lamb=-(x * y).unflatten(0, (tiles.batch, tiles.heads, -1)).sum((0, 2, 3)) * unit.square(),
        h_kk_init=dh_kk_init,
        h_kv_init=dh_kv_init,
    )
