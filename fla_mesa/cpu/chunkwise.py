"""The two building blocks of every matrix-state recurrence, with closed-form forward and backward passes.

Shapes: M chunks (see packing) of C tokens, H heads, keys of K and values of V channels, N sequences.
G is the sum of the log gates over the chunk up to and including a token: `[M, H, C]`, or `[M, H, C, K]` with gates by channel,
or None. Only differences G_t - G_s <= 0 are ever exponentiated, so no gate is too steep.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

Tensor = torch.Tensor


# ---------------------------------------------------------------------------- scores


def decay_mask(G: Tensor) -> Tensor:
    """G `[..., C]` -> exp(G_t - G_s) for s <= t, else 0: `[..., C, C]`"""
    # What lies above the diagonal is made exp(0), then cleared: exp(-inf) takes three times as long as other exponentials.
    return torch.sub(G[..., :, None], G[..., None, :]).clamp_(max=0).exp_().tril()


def scores(G: Tensor | None, k: Tensor, *lefts: Tensor) -> tuple[Tensor, ...]:
    """For each left `[M, H, C, K]`:  A_ts = sum_i left_ti k_si exp(G_ti - G_si) for s <= t, else 0  `[M, H, C, C]`"""
    return _Scores.apply(G, k, *lefts)


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, G: Tensor | None, k: Tensor, *lefts: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(G, k, *lefts)
        if G is None:
            return tuple((left @ k.mT).tril_() for left in lefts)
        if G.ndim < k.ndim:
            mask = decay_mask(G)
            return tuple((left @ k.mT).mul_(mask) for left in lefts)
        return _scores_by_channel(G, k, lefts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        G, k, *lefts = ctx.saved_tensors
        if G is not None and G.ndim == k.ndim:
            dk, dlefts = _scores_by_channel_backward(G, k, lefts, grads)
        else:
            mask = None if G is None else decay_mask(G)
            grads = tuple(dA.tril() if mask is None else dA * mask for dA in grads)
            dlefts = [dA @ k for dA in grads]
            dk = _sum([dA.mT @ left for dA, left in zip(grads, lefts, strict=True)])
        if G is None:
            return None, dk, *dlefts
        # Each score depends on G as a power of e of either side's product: left dleft at t, k dk at s.
        dG = _sum([left * dleft for left, dleft in zip(lefts, dlefts, strict=True)]).addcmul_(k, dk, value=-1)
        return dG if G.ndim == k.ndim else dG.sum(-1), dk, *dlefts


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total.add_(term)
    return total


# With gates by channel the exponential of a difference cannot be taken out of the sum over channels. It is split at some G_m into
# exp(G_t - G_m) exp(G_m - G_s), and the scores of a block of tokens are one matrix product, as long as neither factor overflows:
# as long as the block's gates add up to little. Otherwise its lower left quarter is one product around the row in the middle, where
# both factors are <= 1 however steep the gates, and the two quarters on the diagonal are halved again.

GENTLE = 80.0  # the most that gates may add up to in one product: factors between exp(-40) and exp(40) leave room for gradients


def split_gates(G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """G `[..., C, K]` -> the middle M of its range `[..., 1, K]`, exp(G - M), exp(M - G)"""
    middle = (G[..., :1, :] + G[..., -1:, :]) / 2
    return middle, (G - middle).exp(), (middle - G).exp()


def are_gentle(G: Tensor) -> bool:
    return bool((G[..., 0, :] - G[..., -1, :]).amax() <= GENTLE)


def _blocks(x: Tensor, size: int) -> Tensor:
    """`[..., C, K]` -> `[..., C / size, size, K]`"""
    return x.unflatten(-2, (-1, size))


def _halves(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`[..., C, K]` -> the even and the odd blocks of `size` rows: two `[..., C / (2 size), size, K]`"""
    even, odd = x.unflatten(-2, (-1, 2, size)).unbind(-3)
    return even, odd


def _on_diagonal(A: Tensor, size: int) -> Tensor:
    """`[..., C, C]` -> view of its blocks on the diagonal, `[..., C / size, size, size]`"""
    return A.unflatten(-1, (-1, size)).unflatten(-3, (-1, size)).diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def _below_diagonal(A: Tensor, size: int) -> Tensor:
    """`[..., C, C]` -> view of the lower left quarters of its blocks of 2 `size` on the diagonal"""
    return _on_diagonal(A, 2 * size)[..., size:, :size]


def _around_middle_row(G: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """-> exp(G_m - G) of the even blocks, exp(G - G_m) of the odd ones, m the last row of the even block"""
    G_even, G_odd = _halves(G, size)
    middle = G_even[..., -1:, :]
    return (middle - G_even).exp_(), (G_odd - middle).exp_()


def _sizes(G: Tensor) -> tuple[list[int], int]:
    """-> sizes of the quarters on the way from C down to gentle blocks on the diagonal, and the size of those"""
    size, quarters = G.shape[-2], []
    while size > 1 and not are_gentle(_blocks(G, size)):
        size //= 2
        quarters.append(size)
    return quarters, size


def _scores_by_channel(G: Tensor, k: Tensor, lefts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    C = k.shape[-2]
    out = tuple(left.new_zeros(*left.shape[:-1], C) for left in lefts)
    quarters, block = _sizes(G)
    for size in quarters:
        e_even, e_odd = _around_middle_row(G, size)
        k_even = (_halves(k, size)[0] * e_even).mT
        for left, A in zip(lefts, out, strict=True):
            _below_diagonal(A, size).copy_((_halves(left, size)[1] * e_odd) @ k_even)
    _, opening, closing = split_gates(_blocks(G, block))
    k_closing = (_blocks(k, block) * closing).mT
    for left, A in zip(lefts, out, strict=True):
        _on_diagonal(A, block).copy_(((_blocks(left, block) * opening) @ k_closing).tril_())
    return out


def _scores_by_channel_backward(G: Tensor, k: Tensor, lefts: list[Tensor], grads: tuple[Tensor, ...]):
    quarters, block = _sizes(G)
    _, opening, closing = split_gates(_blocks(G, block))
    k_closing = _blocks(k, block) * closing
    diagonals = [_on_diagonal(dA, block).tril() for dA in grads]
    dlefts = [((dA @ k_closing) * opening).view_as(k) for dA in diagonals]
    dk = _sum([dA.mT @ (_blocks(left, block) * opening) for dA, left in zip(diagonals, lefts, strict=True)])
    dk = (dk * closing).view_as(k)
    for size in quarters:
        e_even, e_odd = _around_middle_row(G, size)
        k_even = _halves(k, size)[0] * e_even
        dk_even = _halves(dk, size)[0]
        for left, dleft, dA in zip(lefts, dlefts, grads, strict=True):
            dA = _below_diagonal(dA, size)
            _halves(dleft, size)[1].addcmul_(dA @ k_even, e_odd)
            dk_even.addcmul_(dA.mT @ (_halves(left, size)[1] * e_odd), e_even)
    return dk, dlefts


# ---------------------------------------------------------------------------- recurrence over chunks


def recurrence(
    counts: list[int],
    A: Tensor,
    q_in: Tensor,
    k_out: Tensor,
    decay: Tensor | None,
    values: Tensor,
    L: Tensor | None,
    h0: Tensor,
) -> tuple[Tensor, Tensor]:
    """States h `[K, V]` from chunk to chunk, and what each token reads from them:

        o = A n + q_in h,    h <- decay * h + k_out' n

    Without L, n = values `[M, H, C, V]`. With L `[M, H, C, C]`, of which only what lies below the diagonal is read, tokens write
    in view of what is there: values `[M, H, C, V + K]` holds two right-hand sides, (u, w) = (I + L)^-1 values, n = u - w h.

    counts: chunks of each step, adding up to M (see packing); A `[M, H, C, C]`; q_in, k_out `[M, H, C, K]`; decay None,
    `[M, H, 1, 1]` or `[M, H, K, 1]`; h0 `[N, H, K, V]` -> o `[M, H, C, V]`, states after the last chunks `[N, H, K, V]`
    """
    return _Recurrence.apply(counts, A, q_in, k_out, decay, values, L, h0)


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, counts: list[int], A, q_in, k_out, decay, values, L, h0):
        K, V = h0.shape[-2:]
        T = X = w = None
        n = values
        if L is not None:
            T = unit_lower_inverse(L)
            X = T @ values
            n, w = X[..., :V].clone(), X[..., V:]
        h = h0.clone()
        before = h.new_empty(*n.shape[:2], K, V)
        start = 0
        for count in counts:
            chunk, running = slice(start, start + count), h[:count]
            before[chunk] = running
            if w is not None:
                n[chunk] -= w[chunk] @ running
            if decay is not None:
                running *= decay[chunk]
            running += k_out[chunk].mT @ n[chunk]
            start += count
        ctx.save_for_backward(A, q_in, k_out, decay, before, n, T, X)
        ctx.counts, ctx.N = counts, len(h0)
        ctx.set_materialize_grads(False)
        return (A @ n).add_(q_in @ before), h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None):
        A, q_in, k_out, decay, before, n, T, X = ctx.saved_tensors
        do, dh_last = grads
        if do is None:
            do = torch.zeros_like(n)
        V = n.shape[-1]
        w = None if X is None else X[..., V:]
        dn = A.mT @ do
        dbefore = q_in.mT @ do
        dafter = torch.empty_like(before)
        dh = before.new_zeros(ctx.N, *before.shape[1:]) if dh_last is None else dh_last.clone()
        start = len(n)
        for count in reversed(ctx.counts):
            start -= count
            chunk, running = slice(start, start + count), dh[:count]
            dafter[chunk] = running
            dn[chunk] += k_out[chunk] @ running
            if decay is not None:
                running *= decay[chunk]
            running += dbefore[chunk]
            if w is not None:
                running -= w[chunk].mT @ dn[chunk]
        ddecay = None
        if decay is not None:
            ddecay = (dafter * before).sum_to_size(decay.shape)
        dvalues, dL = dn, None
        if T is not None and X is not None:
            dvalues = T.mT @ torch.cat([dn, -(dn @ before.mT)], -1)
            dL = -(dvalues @ X.mT).tril_(-1)
        return None, do @ n.mT, do @ before.mT, n @ dafter.mT, ddecay, dvalues, dL, dh


_SOLVED_DIRECTLY = 16


def unit_lower_inverse(L: Tensor) -> Tensor:
    """(I + L)^-1 `[..., C, C]` for the part of L below the diagonal, C a power of two.

    Diagonal blocks by substitution, then pairs of them merged: [[I + P, 0], [B, I + Q]]^-1 has -(I + Q)^-1 B (I + P)^-1 below.
    Most of the work is matrix products, several times faster than substitution for the whole.
    """
    C = L.shape[-1]
    size = min(_SOLVED_DIRECTLY, C)
    blocks = _on_diagonal(L, size)
    eye = torch.eye(size, dtype=L.dtype).expand(blocks.shape)
    inverse = torch.linalg.solve_triangular(blocks, eye, upper=False, unitriangular=True)
    while size < C:
        P, Q = inverse.unflatten(-3, (-1, 2)).unbind(-3)
        below = -(Q @ _below_diagonal(L, size) @ P)
        inverse = torch.cat([F.pad(P, (0, size)), torch.cat([below, Q], -1)], -2)
        size *= 2
    return inverse.squeeze(-3)
