"""Linear attention with a decaying state: fla's gla, simple_gla, and what is built on them (retention, linear_attn).

    h_t = diag(exp(g_t)) h_{t-1} + k_t v_t',   o_t = scale * h_t' q_t          h `[K, V]`

g is nothing, one number a head, or one for each key channel. Chunkwise, G = sum of g over the chunk so far, h0 the state before
the chunk:   o_t = scale * ( (exp(G_t) q_t)' h0 + sum_{s <= t} A_ts v_s ),   A_ts = sum_i q_ti k_si exp(G_ti - G_si)
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from fla.ops import gla, simple_gla
from fla.ops.utils import cumsum

from fla_mesa.cpu.chunkwise import decay_mask, recurrence, scores
from fla_mesa.cpu.packing import Chunks
from fla_mesa.cpu.precision import up, without_autocast
from fla_mesa.cpu.registry import stand_in

Tensor = torch.Tensor

# Tokens a chunk. With gates by channel the scores cost more per pair of tokens.
CHUNK, CHUNK_BY_CHANNEL = 32, 32


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
    """Check fla's `**kwargs`: `chunk_size` changes no result and is not needed here, the old name of `state_v_first` still
    works, anything else is an error. -> state_v_first"""
    if "transpose_state_layout" in kwargs:
        if state_v_first:
            raise ValueError("Pass `state_v_first`, not also its deprecated name `transpose_state_layout`.")
        warnings.warn("`transpose_state_layout` is deprecated: use `state_v_first`.", DeprecationWarning, stacklevel=3)
        state_v_first = kwargs["transpose_state_layout"]
    unknown = sorted(set(kwargs) - {"transpose_state_layout", "chunk_size", *allowed})
    if unknown:
        raise TypeError(f"{function}() got unexpected keyword arguments {unknown}")
    return state_v_first


# ---------------------------------------------------------------------------- the recurrence


@without_autocast
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """q, k `[B, T, H, K]`, v `[B, T, H, V]`, log gates g `[B, T, H]`, gk like k, gv like v, initial_state `[N, H, K, V]`
    -> o like v, final state `[N, H, K, V]` in float32 (float64 stays). `reverse`: from the last token to the first."""
    if reverse:
        return _reversed(q, k, v, g, gk, gv, scale, initial_state, cu_seqlens)
    factor = k.shape[-1] ** -0.5 if scale is None else scale
    if g is not None and gk is not None:
        gk, g = gk + g[..., None], None
    by_channel = gk is not None
    chunks = Chunks(q, CHUNK_BY_CHANNEL if by_channel else CHUNK, cu_seqlens, initial_state)
    step_by_step = gv is not None or chunks.longest <= 1
    if step_by_step:
        chunks = Chunks(q, None, cu_seqlens, initial_state)
    q_, k_, v_ = (chunks.split(up(x)) for x in (q, k, v))
    g_, gk_, gv_ = (None if x is None else chunks.split(up(x)) for x in (g, gk, gv))
    shape = (chunks.N, *k_.shape[1:2], k_.shape[-1], v_.shape[-1])
    h0 = k_.new_zeros(shape) if initial_state is None else chunks.enter(initial_state.to(k_.dtype))
    q_ = q_ * factor
    if step_by_step:
        o, state = _steps(chunks, q_, k_, v_, g_, gk_, gv_, h0)
    else:
        o, state = _chunkwise(chunks, q_, k_, v_, gk_ if by_channel else g_, h0)
    return chunks.join(o).to(v.dtype), chunks.leave(state)


def _reversed(q, k, v, g, gk, gv, scale: float | None, initial_state: Tensor | None, cu_seqlens: Tensor | None):
    """The recurrence over turned tokens; of packed sequences that turns the order of the sequences too."""
    q, k, v, g, gk, gv = (None if x is None else x.flip(1) for x in (q, k, v, g, gk, gv))
    assert q is not None and k is not None and v is not None
    packed = cu_seqlens is not None
    if packed:
        cu_seqlens = cu_seqlens[-1] - cu_seqlens.flip(0)
        initial_state = None if initial_state is None else initial_state.flip(0)
    o, state = linear_attention(q, k, v, g, gk, gv, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)
    return o.flip(1), state.flip(0) if packed else state


def _chunkwise(chunks: Chunks, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, h0: Tensor) -> tuple[Tensor, Tensor]:
    G, (q_in,), k_out, decay = through_gates(g, k, q)
    (A,) = scores(G, k, q)
    return recurrence(chunks.counts, A, q_in, k_out, decay, v, None, h0)


def through_gates(g: Tensor | None, k: Tensor, *reading: Tensor):
    """-> G; `reading` as seen from before the chunk, exp(G) * x; k as seen from after it, exp(G_C - G) * k; exp(G_C) for the state"""
    if g is None:
        return None, reading, k, None
    G = g.cumsum(2)
    last = G[:, :, -1:]
    by_channel = g.ndim == k.ndim
    opening, closing = G.exp(), (last - G).exp()
    if not by_channel:
        opening, closing, last = opening[..., None], closing[..., None], last[..., None]
    return G, tuple(x * opening for x in reading), k * closing, last.exp().mT


def _steps(chunks: Chunks, q, k, v, g, gk, gv, h: Tensor) -> tuple[Tensor, Tensor]:
    """One token at a time: for single tokens, and for gates on the value channels."""
    outputs, (M, C) = [], (k.shape[0], k.shape[2])
    h, rest = h[:M], h[M:]  # sequences without a token keep their state
    for t in range(C):
        if g is not None:
            h = h * g[:, :, t].exp()[..., None, None]
        if gk is not None:
            h = h * gk[:, :, t].exp()[..., :, None]
        if gv is not None:
            h = h * gv[:, :, t].exp()[..., None, :]
        h = h + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append(q[:, :, t, None, :] @ h)
    return torch.cat(outputs, 2), torch.cat([h, rest]) if len(rest) else h


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
    o, state = linear_attention(q, k, v, gk=g, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)
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
    o, state = linear_attention(
        q, k, v, gk=gk, gv=gv, scale=scale, initial_state=initial_state, reverse=reverse, cu_seqlens=cu_seqlens
    )
    return o, state_out(state, output_final_state, state_v_first)


def _gate(q: Tensor, g: Tensor | None, g_gamma: Tensor | None) -> Tensor | None:
    """Per-token gate g `[B, T, H]` and constant gate g_gamma `[H]` in one."""
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
    o, state = linear_attention(q, k, v, g, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)
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
    o, state = linear_attention(
        q, k, v, g, scale=scale, initial_state=initial_state, reverse=reverse, cu_seqlens=cu_seqlens
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
    """-> o, and where `output_attentions` the scores `[B, H, T, T]`"""
    if not output_attentions:
        return linear_attention(q, k, v, g, scale=scale, cu_seqlens=cu_seqlens)[0], None
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
