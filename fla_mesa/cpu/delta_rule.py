"""fla's entry points for the delta rule: plain, gated per head, and gated per key channel (kda)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fla.modules.norm.l2norm import l2norm as normalise
from fla.ops import delta_rule as fla_delta_rule
from fla.ops import gated_delta_rule as fla_gated_delta_rule
from fla.ops import kda as fla_kda
from fla.ops.kda import gate as fla_kda_gate

from fla_mesa.cpu.linear_attention import state_in, state_out, take_options
from fla_mesa.cpu.precision import up
from fla_mesa.cpu.recurrences import matrix_recurrence
from fla_mesa.cpu.registry import stand_in, unsupported

Tensor = torch.Tensor


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
    """`matrix_recurrence` for the delta rule, with fewer heads in q and k than in v.

    q and k are `[B, T, H, K]`, v, beta and the gates `[B, T, HV, ...]`, with H dividing HV; q and k are normalised first if `l2norm`.

    Raises:
        ValueError: q and k differ in shape, or H does not divide HV.
    """
    H, HV = k.shape[2], v.shape[2]
    if q.shape != k.shape:
        raise ValueError(f"`q` and `k` must have the same shape, got {tuple(q.shape)} and {tuple(k.shape)}")
    if HV % H:
        raise ValueError(f"`v`: its {HV} heads must be a multiple of the {H} heads of `q` and `k`")
    if l2norm:
        q, k = normalise(up(q)), normalise(up(k))
    if HV != H:
        q, k = (x.repeat_interleave(HV // H, 2) for x in (q, k))
    return matrix_recurrence(q, k, v, beta, g, gk, gv, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)


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
    """As fla's; q, k `[B, T, H, K]`, v `[B, T, HV, V]`.

    Raises:
        ValueError: An argument of the gate is missing.
    """
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
    """`disable_recompute` trades memory for time in fla's backward pass; nothing is recomputed here.

    Raises:
        ValueError: A gate argument is missing or out of range.
        NotImplementedError: An argument is not supported on a CPU.
    """  # noqa: DOC501 (`unsupported` makes that error)
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
