"""fla's entry points for linear attention: gla, simple_gla, and those built on them (retention, linear_attn)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from fla.ops import gla, simple_gla
from fla.ops.utils import cumsum

from fla_mesa.cpu.chunkwise import decay_mask
from fla_mesa.cpu.packing import Chunks
from fla_mesa.cpu.precision import up, without_autocast
from fla_mesa.cpu.recurrences import matrix_recurrence
from fla_mesa.cpu.registry import stand_in

Tensor = torch.Tensor

# ---------------------------------------------------------------------------- shared with the delta rules


def state_in(state: Tensor | None, v_first: bool) -> Tensor | None:
    """fla's `[N, H, K, V]`, or `[N, H, V, K]` where `v_first` -> `[N, H, K, V]`"""
    if state is None:
        return None
    return up(state.mT if v_first else state)


def state_out(state: Tensor, wanted: bool, v_first: bool) -> Tensor | None:
    if not wanted:
        return None
    return state.mT if v_first else state


def take_options(
    function: str, kwargs: dict[str, Any], state_v_first: bool = False, allowed: tuple[str, ...] = ()
) -> bool:
    """Checks fla's `**kwargs` and returns state_v_first.

    `chunk_size` changes no result and is not needed here, the old name of `state_v_first` still works, anything else is an error.

    Raises:
        TypeError: A keyword is unknown.
        ValueError: Both names of `state_v_first` are given.
    """
    if "transpose_state_layout" in kwargs:
        if state_v_first:
            raise ValueError("Pass `state_v_first`, not also its deprecated name `transpose_state_layout`.")
        warnings.warn("`transpose_state_layout` is deprecated: use `state_v_first`.", DeprecationWarning, stacklevel=3)
        state_v_first = kwargs["transpose_state_layout"]
    unknown = sorted(set(kwargs) - {"transpose_state_layout", "chunk_size", *allowed})
    if unknown:
        raise TypeError(f"{function}() got unexpected keyword arguments {unknown}")
    return state_v_first


# ---------------------------------------------------------------------------- fla's entry points


@stand_in(gla.chunk_gla)
def chunk_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
):
    initial_state = state_in(initial_state, state_v_first)
    o, state = matrix_recurrence(q, k, v, gk=g, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)
    return o, state_out(state, output_final_state, state_v_first)


@stand_in(gla.fused_recurrent_gla)
def fused_recurrent_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **kwargs: Any,
):
    state_v_first = take_options("fused_recurrent_gla", kwargs, state_v_first)
    initial_state = state_in(initial_state, state_v_first)
    o, state = matrix_recurrence(
        q, k, v, gk=gk, gv=gv, scale=scale, initial_state=initial_state, reverse=reverse, cu_seqlens=cu_seqlens
    )
    return o, state_out(state, output_final_state, state_v_first)


def _gate(q: Tensor, g: Tensor | None, g_gamma: Tensor | None) -> Tensor | None:
    """The sum of the per-token gate g `[B, T, H]` and the constant gate g_gamma `[H]`."""
    if g_gamma is None:
        return g
    return g_gamma.expand(q.shape[:3]) if g is None else g + g_gamma


@stand_in(simple_gla.chunk_simple_gla)
def chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **kwargs: Any,
):
    state_v_first = take_options("chunk_simple_gla", kwargs, state_v_first)
    g, initial_state = _gate(q, g, g_gamma), state_in(initial_state, state_v_first)
    o, state = matrix_recurrence(q, k, v, g=g, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)
    return o, state_out(state, output_final_state, state_v_first)


@stand_in(simple_gla.fused_chunk_simple_gla)
def fused_chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
):
    return chunk_simple_gla(q, k, v, g, g_gamma, scale, initial_state, output_final_state, cu_seqlens=cu_seqlens)


@stand_in(simple_gla.fused_recurrent_simple_gla)
def fused_recurrent_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **kwargs: Any,
):
    state_v_first = take_options("fused_recurrent_simple_gla", kwargs, state_v_first)
    g, initial_state = _gate(q, g, g_gamma), state_in(initial_state, state_v_first)
    o, state = matrix_recurrence(
        q, k, v, g=g, scale=scale, initial_state=initial_state, reverse=reverse, cu_seqlens=cu_seqlens
    )
    return o, state_out(state, output_final_state, state_v_first)


@stand_in(simple_gla.parallel_simple_gla)
def parallel_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    output_attentions: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
):
    """Returns o, and the scores `[B, H, T, T]` if `output_attentions`.

    Raises:
        ValueError: `output_attentions` is set for packed sequences.
    """
    if not output_attentions:
        return matrix_recurrence(q, k, v, g=g, scale=scale, cu_seqlens=cu_seqlens)[0], None
    if cu_seqlens is not None:
        raise ValueError("`output_attentions` must be False with packed sequences (`cu_seqlens`)")
    return _with_scores(q, k, v, g, k.shape[-1] ** -0.5 if scale is None else scale)


@without_autocast
def _with_scores(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    q_, k_, v_ = (up(x).transpose(1, 2) for x in (q, k, v))
    scores = scale * q_ @ k_.mT
    scores = scores.tril() if g is None else scores * decay_mask(up(g).transpose(1, 2).cumsum(-1))
    return (scores @ v_).transpose(1, 2).to(v.dtype), scores.to(v.dtype)


@stand_in(cumsum.chunk_global_cumsum)
def chunk_global_cumsum(
    s: Tensor,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    scale: float | None = None,
    output_dtype: torch.dtype | None = torch.float,
    **kwargs: Any,
):
    """Cumulative sum over the tokens of each sequence, s `[B, T, H]` or `[B, T, H, D]`."""
    take_options("chunk_global_cumsum", kwargs)
    chunks = Chunks(s, None, cu_seqlens)
    x = chunks.split(up(s))
    # Padding of zeros at the end of a sequence adds nothing, in either direction.
    x = x.flip(2).cumsum(2).flip(2) if reverse else x.cumsum(2)
    y = chunks.join(x) if scale is None else chunks.join(x) * scale
    return y.to(s.dtype if output_dtype is None else output_dtype if s.dtype != torch.float64 else s.dtype)
