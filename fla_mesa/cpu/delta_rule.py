"""The delta rule, plain, gated by head, or gated by key channel: fla's delta_rule, gated_delta_rule and kda.

    S = diag(exp(g_t)) h_{t-1},   h_t = S + beta_t k_t (v_t - S' k_t)',   o_t = scale * h_t' q_t          h `[K, V]`

Chunkwise, G = sum of g over the chunk so far, h0 the state before the chunk: what token t writes, n_t = beta_t (v_t - S'k_t),
depends on what the tokens before it in the chunk wrote and on h0 through a unit lower triangular system,
    (I + L) n = beta * (v - (exp(G) k) h0),   L_ts = beta_t sum_i k_ti k_si exp(G_ti - G_si) for s < t,
which is solved for both right-hand sides at once, n = u - w h0. Then everything is linear attention with n in place of v.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fla.modules.norm.l2norm import l2norm as normalise
from fla.ops import delta_rule as fla_delta_rule
from fla.ops import gated_delta_rule as fla_gated_delta_rule
from fla.ops import kda as fla_kda
from fla.ops.kda import gate as fla_kda_gate

from fla_mesa.cpu.chunkwise import recurrence, scores
from fla_mesa.cpu.linear_attention import (
    CHUNK,
    CHUNK_BY_CHANNEL,
    state_in,
    state_out,
    take_options,
    through_gates,
)
from fla_mesa.cpu.packing import Chunks
from fla_mesa.cpu.precision import up, without_autocast
from fla_mesa.cpu.registry import stand_in, unsupported

Tensor = torch.Tensor


@without_autocast
def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    l2norm: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """q, k `[B, T, H, K]`, v `[B, T, HV, V]` with H dividing HV, beta `[B, T, HV]` or like v, log gates g `[B, T, HV]`,
    gk `[B, T, HV, K]`, gv like v, initial_state `[N, HV, K, V]` -> o like v, final state in float32 (float64 stays)."""
    H, HV = k.shape[2], v.shape[2]
    if q.shape != k.shape:
        raise ValueError(f"`q` and `k` must have the same shape, got {tuple(q.shape)} and {tuple(k.shape)}")
    if HV % H:
        raise ValueError(f"`v`: its {HV} heads must be a multiple of the {H} heads of `q` and `k`")
    factor = k.shape[-1] ** -0.5 if scale is None else scale
    q_, k_ = up(q), up(k)
    if l2norm:
        q_, k_ = normalise(q_), normalise(k_)
    if HV != H:
        q_, k_ = (x.repeat_interleave(HV // H, 2) for x in (q_, k_))
    if g is not None and gk is not None:
        gk, g = gk + g[..., None], None

    chunks = Chunks(q, CHUNK if gk is None else CHUNK_BY_CHANNEL, cu_seqlens, initial_state)
    step_by_step = gv is not None or beta.ndim == v.ndim or chunks.longest <= 1
    if step_by_step:
        chunks = Chunks(q, None, cu_seqlens, initial_state)
    q_, k_, v_, beta_ = (chunks.split(up(x)) for x in (q_ * factor, k_, v, beta))
    g_, gk_, gv_ = (None if x is None else chunks.split(up(x)) for x in (g, gk, gv))
    shape = (chunks.N, HV, k_.shape[-1], v_.shape[-1])
    h0 = k_.new_zeros(shape) if initial_state is None else chunks.enter(initial_state.to(k_.dtype))
    if step_by_step:
        o, state = _steps(q_, k_, v_, beta_, g_, gk_, gv_, h0)
    else:
        o, state = _chunkwise(chunks, q_, k_, v_, beta_, g_ if gk_ is None else gk_, h0)
    return chunks.join(o).to(v.dtype), chunks.leave(state)


def _chunkwise(chunks: Chunks, q, k, v, beta, g: Tensor | None, h0: Tensor) -> tuple[Tensor, Tensor]:
    beta = beta[..., None]
    kb = beta * k
    G, (q_in, k_in), k_out, decay = through_gates(g, k, q, kb)
    A, L = scores(G, k, q, kb)
    return recurrence(chunks.counts, A, q_in, k_out, decay, torch.cat([beta * v, k_in], -1), L, h0)


def _steps(q, k, v, beta, g, gk, gv, h: Tensor) -> tuple[Tensor, Tensor]:
    """One token at a time: for single tokens, and for gates or beta on the value channels."""
    outputs, (M, C) = [], (k.shape[0], k.shape[2])
    h, rest = h[:M], h[M:]  # sequences without a token keep their state
    beta = beta if beta.ndim == v.ndim else beta[..., None]
    for t in range(C):
        if g is not None:
            h = h * g[:, :, t].exp()[..., None, None]
        if gk is not None:
            h = h * gk[:, :, t].exp()[..., :, None]
        if gv is not None:
            h = h * gv[:, :, t].exp()[..., None, :]
        k_t = k[:, :, t, :, None]
        n = beta[:, :, t, None] * (v[:, :, t, None] - k_t.mT @ h)
        h = h + k_t * n
        outputs.append(q[:, :, t, None, :] @ h)
    return torch.cat(outputs, 2), torch.cat([h, rest]) if len(rest) else h


# ---------------------------------------------------------------------------- gates that fla computes in its kernels


def _sigmoid_beta(beta: Tensor, in_kernel: bool, allow_neg_eigval: bool) -> Tensor:
    if allow_neg_eigval and not in_kernel:
        raise ValueError("`allow_neg_eigval=True` requires `use_beta_sigmoid_in_kernel=True`")
    if not in_kernel:
        return beta
    return up(beta).sigmoid() * 2 if allow_neg_eigval else up(beta).sigmoid()


def _head_gate(g: Tensor, A_log: Tensor | None, dt_bias: Tensor | None) -> Tensor:
    """g `[B, T, HV]`, A_log, dt_bias `[HV]` -> log gate"""
    if A_log is None:
        raise ValueError("`A_log` is required with `use_gate_in_kernel=True`, got None")
    return -up(A_log).exp() * F.softplus(up(g) if dt_bias is None else up(g) + up(dt_bias))


def _channel_gate(g: Tensor, A_log: Tensor | None, dt_bias: Tensor | None, lower_bound: float | None) -> Tensor:
    """g `[..., HV, K]`, A_log `[HV]`, dt_bias `[HV * K]` -> log gate"""
    x = up(g) if dt_bias is None else up(g) + up(dt_bias).view(g.shape[-2:])
    if lower_bound is not None:
        return lower_bound * torch.sigmoid(x if A_log is None else up(A_log).view(-1, 1).exp() * x)
    if A_log is None:
        raise ValueError("`A_log` is required where `lower_bound` is None, got None")
    return -up(A_log).view(-1, 1).exp() * F.softplus(x)


@stand_in(fla_kda_gate.fused_kda_gate, operation="kda")
def fused_kda_gate(
    g: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    lower_bound: float | None = None,
    output_dtype: torch.dtype = torch.float32,
):
    gate = _channel_gate(g, A_log, dt_bias, lower_bound)
    return gate if gate.dtype == torch.float64 else gate.to(output_dtype)


# ---------------------------------------------------------------------------- fla's entry points


@stand_in(fla_delta_rule.chunk_delta_rule)
def chunk_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **kwargs: Any,
):
    take_options("chunk_delta_rule", kwargs)
    o, state = delta_rule(
        q, k, v, beta, scale=scale, initial_state=initial_state, l2norm=use_qk_l2norm_in_kernel, cu_seqlens=cu_seqlens
    )
    return o, state_out(state, output_final_state, False)


@stand_in(fla_delta_rule.fused_recurrent_delta_rule)
def fused_recurrent_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
):
    beta = torch.ones_like(v[..., 0]) if beta is None else beta
    o, state = delta_rule(
        q, k, v, beta, scale=scale, initial_state=initial_state, l2norm=use_qk_l2norm_in_kernel, cu_seqlens=cu_seqlens
    )
    return o, state_out(state, output_final_state, False)


@stand_in(fla_gated_delta_rule.chunk_gated_delta_rule, operation="gated_delta_rule")
def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    cp_context: Any = None,
    **kwargs: Any,
):
    in_kernel = ("use_gate_in_kernel", "A_log", "dt_bias")
    state_v_first = take_options("chunk_gated_delta_rule", kwargs, state_v_first, in_kernel)
    if cp_context is not None:
        raise unsupported("cp_context", cp_context, "None: no context parallelism")
    return fused_recurrent_gated_delta_rule(
        q,
        k,
        v,
        g,
        beta=beta,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        use_beta_sigmoid_in_kernel=use_beta_sigmoid_in_kernel,
        allow_neg_eigval=allow_neg_eigval,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
        **{name: kwargs[name] for name in in_kernel if name in kwargs},
    )


@stand_in(fla_gated_delta_rule.fused_recurrent_gated_delta_rule)
def fused_recurrent_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **kwargs: Any,
):
    state_v_first = take_options("fused_recurrent_gated_delta_rule", kwargs, state_v_first)
    if use_gate_in_kernel:
        if g is None:
            raise ValueError("`g` is required with `use_gate_in_kernel=True`, got None")
        g = _head_gate(g, A_log, dt_bias)
    beta = torch.ones_like(v[..., 0]) if beta is None else beta
    o, state = delta_rule(
        q,
        k,
        v,
        _sigmoid_beta(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval),
        g,
        gk,
        gv,
        scale=scale,
        initial_state=state_in(initial_state, state_v_first),
        l2norm=use_qk_l2norm_in_kernel,
        cu_seqlens=cu_seqlens,
    )
    return o, state_out(state, output_final_state, state_v_first)


@stand_in(fla_kda.chunk_kda)
def chunk_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    cp_context: Any = None,
    use_graph: bool = False,
    max_num_seqs: int | None = None,
    **kwargs: Any,
):
    """`disable_recompute` trades memory for time in fla's backward pass; nothing is recomputed here."""
    state_v_first = take_options("chunk_kda", kwargs, state_v_first, ("A_log", "dt_bias"))
    for name, value in (("cp_context", cp_context), ("max_num_seqs", max_num_seqs)):
        if value is not None:
            raise unsupported(name, value, "None")
    for name, value in (("return_intermediate_states", return_intermediate_states), ("use_graph", use_graph)):
        if value:
            raise unsupported(name, value, "False")
    if safe_gate and use_gate_in_kernel and (lower_bound is None or not -5 <= lower_bound < 0):
        raise ValueError(f"`lower_bound` must be in [-5, 0) with `safe_gate=True`, got {lower_bound}")
    return fused_recurrent_kda(
        q,
        k,
        v,
        g,
        beta,
        A_log=kwargs.get("A_log"),
        dt_bias=kwargs.get("dt_bias"),
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        use_gate_in_kernel=use_gate_in_kernel,
        use_beta_sigmoid_in_kernel=use_beta_sigmoid_in_kernel,
        allow_neg_eigval=allow_neg_eigval,
        lower_bound=lower_bound,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
    )


@stand_in(fla_kda.fused_recurrent_kda)
def fused_recurrent_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **kwargs: Any,
):
    state_v_first = take_options("fused_recurrent_kda", kwargs, state_v_first)
    o, state = delta_rule(
        q,
        k,
        v,
        _sigmoid_beta(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval),
        gk=_channel_gate(g, A_log, dt_bias, lower_bound) if use_gate_in_kernel else g,
        scale=scale,
        initial_state=state_in(initial_state, state_v_first),
        l2norm=use_qk_l2norm_in_kernel,
        cu_seqlens=cu_seqlens,
    )
    return o, state_out(state, output_final_state, state_v_first)
