"""Recurrences with a matrix state h `[K, V]` that decays, is written and is read by keys: linear attention and the delta rule.

    S = diag(exp(g_t)) h_{t-1}
    h_t = S + k_t v_t'                          (linear attention)
    h_t = S + beta_t k_t (v_t - S' k_t)'        (delta rule)
    o_t = scale * h_t' q_t

The log gate g is nothing, one number a head, or one for each key channel. Chunkwise, with G the sum of g over the chunk so far
and h the state before it:
    o_t = scale * ( (exp(G_t) q_t)' h + sum_{s <= t} A_ts n_s ),   A_ts = sum_i q_ti k_si exp(G_ti - G_si)
where n_s is what token s writes: v_s in linear attention. By the delta rule it depends on what the tokens before it in the chunk
wrote and on h, through a unit lower triangular system:
    (I + L) n = beta * (v - (exp(G) k) h),      L_ts = beta_t sum_i k_ti k_si exp(G_ti - G_si) for s < t
which is solved for both right-hand sides at once.
"""

from __future__ import annotations

import torch

from fla_mesa.cpu.chunkwise import are_gentle, recurrence, scores, split_gates
from fla_mesa.cpu.packing import Chunks
from fla_mesa.cpu.precision import up, without_autocast

Tensor = torch.Tensor

CHUNK = 32  # tokens; fastest of 16, 32 and 64 at K = V = 64 on a CPU


@without_autocast
def matrix_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence over sequences, forwards or backwards in time.

    q, k `[B, T, H, K]`; v `[B, T, H, V]`; beta `[B, T, H]` or like v, None for linear attention; log gates g `[B, T, H]`, gk like
    k, gv like v, which decays the value channels; scale, 1 / sqrt(K) if None; initial_state `[N, H, K, V]`; `reverse`: from the
    last token to the first -> o like v, final state `[N, H, K, V]` in float32 (float64 stays).

    Raises:
        ValueError: shapes that do not fit, or what `Chunks` rejects.
    """
    _check_shapes(q, k, v, beta, g, gk, gv)
    if reverse:
        return _reversed(q, k, v, beta, g, gk, gv, scale, initial_state, cu_seqlens)
    factor = k.shape[-1] ** -0.5 if scale is None else scale
    if g is not None and gk is not None:
        gk, g = gk + g[..., None], None
    chunks = Chunks(q, CHUNK, cu_seqlens, initial_state)
    token_by_token = chunks.longest <= 1 or gv is not None or (beta is not None and beta.ndim == v.ndim)
    if token_by_token:
        chunks = Chunks(q, None, cu_seqlens, initial_state)
    q_, k_, v_ = (chunks.split(up(x)) for x in (q, k, v))
    beta_, g_, gk_, gv_ = (None if x is None else chunks.split(up(x)) for x in (beta, g, gk, gv))
    h = k_.new_zeros(chunks.N, k_.shape[1], k_.shape[-1], v_.shape[-1])
    if initial_state is not None:
        h = chunks.enter(initial_state.to(k_.dtype))
    if token_by_token:
        o, h = _token_by_token(q_ * factor, k_, v_, beta_, g_, gk_, gv_, h)
    else:
        o, h = _chunkwise(chunks, q_ * factor, k_, v_, beta_, g_ if gk_ is None else gk_, h)
    return chunks.join(o).to(v.dtype), chunks.leave(h)


def _check_shapes(q, k, v, beta, g, gk, gv) -> None:
    def check(name: str, x: Tensor | None, *shapes: torch.Size) -> None:
        if x is not None and x.shape not in shapes:
            allowed = " or ".join(str(list(shape)) for shape in shapes)
            raise ValueError(f"`{name}` must have shape {allowed}, got {list(x.shape)}")

    head = q.shape[:3]
    check("k", k, q.shape)
    check("v", v, head + v.shape[3:])
    check("beta", beta, head, v.shape)
    check("g", g, head)
    check("gk", gk, q.shape)
    check("gv", gv, v.shape)


def _reversed(q, k, v, beta, g, gk, gv, scale: float | None, initial_state: Tensor | None, cu_seqlens: Tensor | None):
    """The recurrence over reversed tokens; for packed sequences that also reverses the order of the sequences."""
    q, k, v = (x.flip(1) for x in (q, k, v))
    beta, g, gk, gv = (None if x is None else x.flip(1) for x in (beta, g, gk, gv))
    packed = cu_seqlens is not None
    if packed:
        cu_seqlens = cu_seqlens[-1] - cu_seqlens.flip(0)
        initial_state = None if initial_state is None else initial_state.flip(0)
    o, state = matrix_recurrence(
        q, k, v, beta, g, gk, gv, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens
    )
    return o.flip(1), state.flip(0) if packed else state


def _chunkwise(chunks: Chunks, q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, g: Tensor | None, h: Tensor):
    if beta is None:
        (A,), (q_in,), k_out, decay = _through_gates(g, k, q)
        return recurrence(chunks.counts, A, q_in, k_out, decay, v, None, h)
    beta = beta[..., None]
    (A, L), (q_in, kb_in), k_out, decay = _through_gates(g, k, q, beta * k)
    return recurrence(chunks.counts, A, q_in, k_out, decay, torch.cat([beta * v, kb_in], -1), L, h)


def _through_gates(g: Tensor | None, k: Tensor, *lefts: Tensor):
    """What a chunk asks of its keys.

    -> for each left its scores with k; each left as it meets the state before the chunk, exp(G) left; k as it enters the state
    after the chunk, exp(G_last - G) k; and the decay of the state over the chunk, exp(G_last)
    """
    if g is None:
        return scores(None, k, *lefts), lefts, k, None
    G = g.cumsum(2)
    last = G[:, :, -1:]
    if g.ndim == k.ndim and are_gentle(G.detach()):
        middle, opening, closing = split_gates(G)
        lefts, k = tuple(x * opening for x in lefts), k * closing
        to_start, to_end = middle.exp(), (last - middle).exp()
        return scores(None, k, *lefts), tuple(x * to_start for x in lefts), k * to_end, last.exp().mT
    opening, closing = G.exp(), (last - G).exp()
    if g.ndim < k.ndim:
        opening, closing, last = opening[..., None], closing[..., None], last[..., None]
    return scores(G, k, *lefts), tuple(x * opening for x in lefts), k * closing, last.exp().mT


def _token_by_token(q, k, v, beta: Tensor | None, g: Tensor | None, gk: Tensor | None, gv: Tensor | None, h: Tensor):
    """The definition, used for single tokens and for gates or beta per value channel."""
    outputs, (M, C) = [], (k.shape[0], k.shape[2])
    h, rest = h[:M], h[M:]  # sequences without a token keep their state
    beta = beta if beta is None or beta.ndim == v.ndim else beta[..., None]
    for t in range(C):
        if g is not None:
            h = h * g[:, :, t].exp()[..., None, None]
        if gk is not None:
            h = h * gk[:, :, t].exp()[..., :, None]
        if gv is not None:
            h = h * gv[:, :, t].exp()[..., None, :]
        k_t, n = k[:, :, t, :, None], v[:, :, t, None]
        if beta is not None:
            n = beta[:, :, t, None] * (n - k_t.mT @ h)
        h = h + k_t * n
        outputs.append(q[:, :, t, None, :] @ h)
    return torch.cat(outputs, 2), torch.cat([h, rest]) if len(rest) else h
