# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false, reportAssignmentType=false
# (device code: types mean something else to Triton)
"""The solve in float16, forward with the output and backward with what feeds it: one linear system per row.

With a_t the base-2 logarithm of the decay since the start of the chunk and H0 the state before the chunk, row t solves

    (H_t + diag(lamb)) x_t = b_t ,    H_t p = exp2(a_t) H0 p + sum_{s<=t} exp2(a_t - a_s) beta_s k_s (k_s'p)

In the coordinates diag(lamb)^1/2 x it is (S_t + 1) x = diag(lamb)^-1/2 b, S_t = diag(lamb)^-1/2 H_t diag(lamb)^-1/2, whose eigenvalues are
at least 1, and lamb takes no registers. The state is divided by its largest diagonal entry, each key by a power of two of its own, each row
by its own, and the weights of the keys by what keeps their sums within float16.

How this differs from the textbook's conjugate gradients:

- The start is b / diag(H_t + diag(lamb)), as in algorithm 1 of arXiv 2506.05233. It is the first pass of the loop, with a step of 1.
- x, r and p stay in registers, float16 as the operands of every product; norms and curvatures are float32. No constant is added to a
  denominator, and no step depends on the scale of b.
- When the residual of the recurrence is small enough, the true one is computed, with keys and state in two float16 parts. A row in which it
  is not gets another round on what is left, as long as rounds gain; for most there is one. What a row ends with is what it reports.
- A row stops on its own and is frozen there; the tile ends with its last row, for which it looks after every second step.
"""

import triton
import triton.language as tl
from fla.ops.utils.op import exp2
from fla.utils import autotune_cache_kwargs

from fla_mesa.ops.triton.kernels_tile import (
    decay_mask,
    dot,
    exponent,
    load_rows,
    locate,
    poison,
    power,
    scale_rows,
    scrub,
    store_rows,
)
from fla_mesa.ops.triton.plan import SOLVE_CONFIGS, solve_configs

# How far the residual of a round falls at most: more than float16 gives would be steps for nothing.
GAIN = tl.constexpr(2.0**-12)
# And at least, for another round to follow.
LEAST = tl.constexpr(2.0**-2)
AIM = tl.constexpr(0.4)  # of the tolerance, before the true residual is computed
FAR = tl.constexpr(2.0**24)  # ||r||^2 of a row that float16 has lost, before anything overflows
ROOM = tl.constexpr(64.0)  # what sums of weights may reach in float16


@triton.jit
def halves(b_a):
    """float32 entries of at most some thousands as float16 parts: a = high + low / 2048, 22 bits of each entry."""
    b_high = b_a.to(tl.float16)
    return b_high, ((b_a - b_high) * 2048.0).to(tl.float16)


@triton.jit
def operands(k, h, g, beta, lamb, o_t, o_k, T, H: tl.constexpr, K: tl.constexpr, BT: tl.constexpr):
    """What the products take: S_t = c_t (ratio_t S_0 + sum_s M_ts k_s k_s'), S_0 and k_s in halves, M [BR, BT] float16, of

    M_ts = exp2(a_t - a_s) beta_s c_s^2 / c_t for keys that were divided by c_s; and 1 / diag(S_t + 1), float16.
    """
    o_s = tl.arange(0, BT)
    m_k = o_k < K
    b_h = tl.load(h + o_k[:, None] * K + o_k[None, :], mask=m_k[:, None] & m_k[None, :], other=0.0)
    b_diagonal = tl.load(h + o_k * (K + 1), mask=m_k, other=0.0)
    b_unit = power(exponent(tl.max(b_diagonal)))
    b_h_high, b_h_low = halves(b_h / b_unit)
    tl.debug_barrier()
    b_root = tl.rsqrt(tl.load(lamb + o_k, mask=m_k, other=1.0).to(tl.float32))
    b_k = tl.load(k + o_s[:, None] * (H * K) + o_k[None, :], mask=(o_s < T)[:, None] & m_k[None, :], other=0.0)
    b_k, b_ck = scale_rows(scrub(b_k).to(tl.float32) * b_root[None, :])
    b_k_high, b_k_low = halves(b_k)
    b_ck = tl.trans(b_ck)
    tl.debug_barrier()
    b_gt = tl.load(g + o_t * H, mask=o_t < T, other=0.0).to(tl.float32)
    b_m = decay_mask(g, beta, b_gt, o_t, o_s, T, H) * (b_ck * b_ck)
    b_ratio = exp2(b_gt)[:, None] * b_unit
    b_sum = tl.sum(b_m, axis=1, keep_dims=True)
    b_c = tl.maximum(tl.maximum(b_sum, b_ratio) / ROOM, 1.0)
    b_sum += tl.sum(b_diagonal)
    b_c = power(exponent(b_c)) + (b_ratio - b_ratio) + (b_sum - b_sum)  # NaN where a weight or the state is not finite
    b_one = 1.0 / b_c
    b_ratio *= b_one
    b_m = (b_m * b_one).to(tl.float16)
    b_diagonal = tl.dot(b_m, b_k_high * b_k_high) + b_ratio * (b_diagonal / b_unit)[None, :]
    b_start = (1.0 / (b_c * b_diagonal + 1.0)).to(tl.float16)
    return b_h_high, b_h_low, b_k_high, b_k_low, b_m, b_ratio, b_ck, b_one, b_start


@triton.jit
def apply_half(b_p, b_k, b_h, b_m, b_ratio, b_one, ACC: tl.constexpr):
    """(S_t + 1) p_t / c_t [BR, BK] of float16 p, sums in ACC; `one` is 1 / c_t."""
    b_s = tl.dot(b_p, tl.trans(b_k), out_dtype=ACC).to(tl.float16) * b_m
    b_y = b_p * b_one.to(ACC) + tl.dot(b_p, b_h, out_dtype=ACC) * b_ratio.to(ACC)
    return tl.dot(b_s, b_k, b_y, out_dtype=ACC)


@triton.jit
def apply_halves(b_d, b_k_high, b_k_low, b_h_high, b_h_low, b_m, b_ratio):
    """S_t d_t / c_t [BR, BK] float32 of float16 d. Rounding of state and keys shows where they meet d: d is large where they are small."""
    b_s = tl.dot(b_d, tl.trans(b_k_low)) * (1 / 2048)
    b_s = tl.dot(b_d, tl.trans(b_k_high), b_s).to(tl.float16) * b_m
    b_y = tl.dot(b_d, b_h_low) * (1 / 2048)
    b_y = tl.dot(b_d, b_h_high, b_y) * b_ratio
    return tl.dot(b_s, b_k_high, b_y)


@triton.jit
def squares(b_a):
    """||a_t||^2 of each row [BR, 1], in float32."""
    return tl.sum(b_a.to(tl.float32) * b_a.to(tl.float32), axis=1, keep_dims=True)


@triton.jit
def solve(b_b, b_scale, x, lamb, b_h_high, b_h_low, b_k_high, b_k_low, b_m, b_ratio, b_one, b_start, o_t, o_k, T, max_steps, tolerance,
          H: tl.constexpr, K: tl.constexpr, X: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """Solve (S_t + 1) x_t = b_t of rows b_b [BR, BK] with largest entry near 1, and store diag(lamb)^-1/2 x_t * scale_t.

    Returns that as it is stored and what to multiply it by [BR, 1], the residual likewise, of b * scale, the steps, the relative residual,
    and `i_zero`: 0, but the compiler cannot know that before the iteration ends. Addresses of what follows, built on it, are not computed
    early and kept, which would spill the registers of the iteration.
    """
    # Where registers last, the residual and the sums of the iteration are float32.
    ACC: tl.constexpr = tl.float32 if BK <= 64 else tl.float16
    b_b = b_b.to(tl.float16)
    b_p = b_b * b_start
    b_rr = squares(b_b) + (b_one - b_one)
    # The residual is b * scale, and ||b||^2 = rr; done it is at the goal.
    b_goal = b_rr * (tolerance * tolerance)
    b_open = (b_rr <= 0.0) == 0  # NaN as well: it goes through the start
    b_steps = tl.zeros([BR, 1], dtype=tl.int32)
    b_x = tl.zeros([BR, BK], dtype=tl.float16)
    b_x_scale = b_scale
    i_step = -1  # the start
    i_zero = 0
    i_round = 0
    n_open = tl.maximum(tl.sum(b_open.to(tl.int32)), 1)  # what solves nothing stores zeros
    while n_open > 0:
        b_r = tl.where(b_open, b_b, 0.0).to(ACC)
        b_stop = tl.maximum(b_goal * (AIM * AIM), b_rr * (GAIN * GAIN))
        b_d = tl.zeros([BR, BK], dtype=tl.float16)
        b_active = b_open
        n_active = tl.sum(b_open.to(tl.int32))
        while n_active > 0:
            for _ in tl.static_range(2):
                b_y = apply_half(b_p, b_k_high, b_h_high, b_m, b_ratio, b_one, ACC)
                b_php = tl.sum(b_y.to(tl.float32) * b_p.to(tl.float32), axis=1, keep_dims=True)
                b_active = b_active & ((b_steps < max_steps) | (i_step < 0))
                m_step = b_active & ((b_php > 0.0) | (i_step < 0))
                b_alpha = tl.where(m_step, tl.where(i_step < 0, 1.0 / b_one, b_rr / b_php), 0.0)
                b_d += (b_alpha * b_one).to(tl.float16) * b_p
                b_r -= b_alpha.to(ACC) * b_y
                b_new = squares(b_r)
                b_steps += (b_active & (i_step >= 0)).to(tl.int32)
                b_active = m_step & (b_new > b_stop) & (b_new < FAR)
                b_beta = tl.where(b_active & (i_step >= 0), b_new / b_rr, 0.0).to(tl.float16)
                b_p = b_r.to(tl.float16) + b_beta * b_p
                b_rr = b_new
                i_step += 1
            n_active = tl.sum(b_active.to(tl.int32))
        i_zero = tl.multiple_of(tl.minimum(n_active, 0), 128)

        # b -= (S_t + 1) d , x += d
        b_least = squares(b_b) * (LEAST * LEAST)
        b_e = apply_halves(b_d, b_k_high, b_k_low, b_h_high, b_h_low, b_m, b_ratio) / b_one
        b_e = b_b.to(tl.float32) - (b_e + b_d.to(tl.float32))
        # What overflowed counts for nothing; what began with a NaN is to stay one.
        m_finite = (squares(b_e) < float("inf")) | (b_goal != b_goal)
        b_d = tl.where(m_finite, b_d, 0.0)
        b_e, b_e_scale = scale_rows(tl.where(m_finite, b_e, b_b.to(tl.float32)))
        b_b = b_e.to(tl.float16)
        b_p = b_b
        tl.debug_barrier()
        o_te, o_ke = o_t + i_zero, o_k + i_zero
        b_root = tl.rsqrt(tl.load(lamb + o_ke, mask=o_ke < K, other=1.0).to(tl.float32))
        b_new = b_d.to(tl.float32) * b_scale * b_root[None, :]
        b_new += load_rows(x, o_te, o_ke, tl.where(i_round > 0, T, 0), H, K, X)
        b_x, b_x_scale = store_rows(x, b_new, o_te, o_ke, T, H, K, X)
        tl.debug_barrier()
        b_scale *= b_e_scale
        b_goal /= b_e_scale * b_e_scale
        b_rr = squares(b_b)
        b_open = b_open & (b_rr > b_goal) & (b_rr * (b_e_scale * b_e_scale) < b_least) & (b_steps < max_steps)
        n_open = tl.sum(b_open.to(tl.int32))
        i_round += 1

    b_relative = tl.where(b_goal > 0.0, tl.sqrt(b_rr / b_goal) * tolerance, 0.0) + (b_goal - b_goal)
    return b_x, b_x_scale, b_b, b_scale, b_steps, b_relative, i_zero


@triton.heuristics({"IS_VARLEN": lambda args: args["cu_seqlens"] is not None})
@triton.autotune(
    configs=SOLVE_CONFIGS,
    key=["H", "K", "V", "BT", "BR", "size"],
    prune_configs_by={"early_config_prune": solve_configs},
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["T", "n_chunks", "size", "max_steps"])
def solve_output_kernel(
    q, k, v, g, beta, lamb, h_kk, h_kv, h_kv_scale, x, o, iterations, residual, cu_seqlens, chunk_indices,
    T, n_chunks, size, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, X: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, BC: tl.constexpr, IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """x_t of a tile and, while it is in registers, the output o_t = G_t'x_t."""
    i_r, i_s, i_h, first, T = locate(
        tl.program_id(0), cu_seqlens, chunk_indices, T, n_chunks, H, BT, BT // BR, IS_VARLEN
    )
    o_t = i_r * BR + tl.arange(0, BR)
    o_k = tl.arange(0, BK)
    i_row = first * H + i_h
    lamb += i_h * K
    b_h_high, b_h_low, b_k_high, b_k_low, b_m, b_ratio, b_ck, b_one, b_start = operands(
        k + i_row * K, h_kk + (i_s * H + i_h) * K * K, g + i_row, beta + i_row, lamb, o_t, o_k, T, H, K, BT
    )
    b_root = tl.rsqrt(tl.load(lamb + o_k, mask=o_k < K, other=1.0).to(tl.float32))
    m_tk = (o_t < T)[:, None] & (o_k < K)[None, :]
    b_q = tl.load(q + i_row * K + o_t[:, None] * (H * K) + o_k[None, :], mask=m_tk, other=0.0).to(tl.float32)
    b_q, b_scale = scale_rows(b_q * b_root[None, :])
    b_x, b_x_scale, _, _, b_steps, b_relative, i_zero = solve(
        b_q, b_scale, x + i_row * X, lamb, b_h_high, b_h_low, b_k_high, b_k_low, b_m, b_ratio, b_one, b_start, o_t, o_k, T,
        max_steps, tolerance, H, K, X, BR, BK,
    )  # fmt: skip

    i_row += i_zero
    o_t += i_zero
    o_k += i_zero
    m_t = (o_t < T)[:, None]
    tl.store(iterations + i_row + o_t[:, None] * H, b_steps, mask=m_t)
    tl.store(residual + i_row + o_t[:, None] * H, b_relative, mask=m_t)

    # o = x_scale (sum_s M_ts (x'k_s) v_s + exp2(a) G0'x)
    m_k = o_k < K
    b_lamb = tl.load(lamb + o_k, mask=m_k, other=1.0).to(tl.float32)
    b_s = tl.dot((b_x.to(tl.float32) * tl.sqrt(b_lamb)[None, :]).to(tl.float16), tl.trans(b_k_high))
    b_s = (b_s.to(tl.float16) * b_m).to(tl.float32) / (b_one * b_ck)
    b_decay = exp2(tl.load(g + i_row + o_t[:, None] * H, mask=m_t, other=0.0).to(tl.float32))
    o_s = tl.arange(0, BT) + i_zero
    h_kv += (i_s * H + i_h) * K * V
    h_kv_scale += (i_s * H + i_h) * tl.cdiv(K, BC) * tl.cdiv(V, BC)
    for i_v in tl.static_range(0, V, BV):
        o_v = i_v + tl.arange(0, BV)
        m_v = (o_v < V)[None, :]
        # The blocks of G have a scale each: a row of them meets x, the largest the sum.
        b_unit = tl.load(h_kv_scale + (o_k // BC) * tl.cdiv(V, BC) + i_v // BC, mask=m_k, other=0.0)
        b_most = tl.max(b_unit)
        b_xg = (b_x.to(tl.float32) * (b_unit / b_most)[None, :]).to(tl.float16)
        b_g = tl.load(h_kv + o_k[:, None] * V + o_v[None, :], mask=m_k[:, None] & m_v, other=0.0)
        b_o = tl.dot(b_xg, b_g) * (b_decay * b_most)
        b_v = tl.load(v + i_row * V + o_s[:, None] * (H * V) + o_v[None, :], mask=(o_s < T)[:, None] & m_v, other=0.0)
        b_o = dot(b_s, scrub(b_v), b_o, "bf16x3") * b_x_scale
        p_o = o + i_row * V + o_t[:, None] * (H * V) + o_v[None, :]
        tl.store(p_o, b_o.to(o.dtype.element_ty), mask=m_t & m_v)
        poison(p_o, b_v, o_t, o_s, m_t & m_v)


@triton.heuristics({"IS_VARLEN": lambda args: args["cu_seqlens"] is not None})
@triton.autotune(
    configs=SOLVE_CONFIGS,
    key=["H", "K", "V", "BT", "BR", "size"],
    prune_configs_by={"early_config_prune": solve_configs},
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["T", "n_chunks", "size", "max_steps"])
def solve_backward_kernel(
    k, v, g, beta, lamb, h_kk, h_kv, h_kv_scale, x, do, y, dq, da_rows, dlamb, residual, cu_seqlens, chunk_indices,
    T, n_chunks, size, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, X: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, BC: tl.constexpr, IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """dx_t = G_t do_t and the solve for y_t of a tile, which is dq_t; its part of dlamb; and what the decay of each row receives,

    x_t.(G_t do_t) - x_t.(H_t y_t) = x_t.(lamb * y_t + r_t) ,    r_t the residual of the solve.
    """
    i_r, i_s, i_h, first, T = locate(
        tl.program_id(0), cu_seqlens, chunk_indices, T, n_chunks, H, BT, BT // BR, IS_VARLEN
    )
    o_t = i_r * BR + tl.arange(0, BR)
    o_k = tl.arange(0, BK)
    o_s = tl.arange(0, BT)
    i_row = first * H + i_h
    lamb += i_h * K
    m_t, m_k = (o_t < T)[:, None], o_k < K
    h_kv += (i_s * H + i_h) * K * V
    h_kv_scale += (i_s * H + i_h) * tl.cdiv(K, BC) * tl.cdiv(V, BC)
    b_h_high, b_h_low, b_k_high, b_k_low, b_m, b_ratio, b_ck, b_one, b_start = operands(
        k + i_row * K, h_kk + (i_s * H + i_h) * K * K, g + i_row, beta + i_row, lamb, o_t, o_k, T, H, K, BT
    )
    tl.debug_barrier()
    b_s = tl.zeros([BR, BT], dtype=tl.float32)
    b_dx = tl.zeros([BR, BK], dtype=tl.float32)
    for i_v in range(0, V, BV):
        o_v = i_v + tl.arange(0, BV)
        m_v = (o_v < V)[None, :]
        b_do = tl.load(do + i_row * V + o_t[:, None] * (H * V) + o_v[None, :], mask=m_t & m_v, other=0.0)
        b_v = tl.load(v + i_row * V + o_s[:, None] * (H * V) + o_v[None, :], mask=(o_s < T)[:, None] & m_v, other=0.0)
        b_s = tl.dot(b_do, tl.trans(scrub(b_v)), b_s)
        b_do, b_do_scale = scale_rows(b_do.to(tl.float32))
        b_g = tl.load(h_kv + o_k[None, :] * V + o_v[:, None], mask=m_k[None, :] & (o_v < V)[:, None], other=0.0)
        b_unit = tl.load(h_kv_scale + (o_k // BC) * tl.cdiv(V, BC) + i_v // BC, mask=m_k, other=0.0)
        b_dx += tl.dot(b_do.to(tl.float16), b_g) * b_do_scale * b_unit[None, :]
    b_decay = exp2(tl.load(g + i_row + o_t[:, None] * H, mask=m_t, other=0.0).to(tl.float32))
    b_root = tl.rsqrt(tl.load(lamb + o_k, mask=m_k, other=1.0).to(tl.float32))
    b_s, b_s_scale = scale_rows(b_s * b_m.to(tl.float32) / (b_one * b_ck))
    b_dx = b_dx * b_decay * b_root[None, :] + tl.dot(b_s.to(tl.float16), b_k_high) * b_s_scale
    b_dx, b_scale = scale_rows(b_dx)
    b_y, b_y_scale, b_r, b_r_scale, _, b_relative, i_zero = solve(
        b_dx, b_scale, y + i_row * X, lamb, b_h_high, b_h_low, b_k_high, b_k_low, b_m, b_ratio, b_one, b_start, o_t, o_k, T,
        max_steps, tolerance, H, K, X, BR, BK,
    )  # fmt: skip

    i_row += i_zero
    o_t += i_zero
    o_k += i_zero
    m_t, m_k = (o_t < T)[:, None], o_k < K
    tl.store(residual + i_row + o_t[:, None] * H, b_relative, mask=m_t)
    b_lamb = tl.load(lamb + o_k, mask=m_k, other=1.0).to(tl.float32)[None, :]
    b_x = load_rows(x + i_row * X, o_t, o_k, T, H, K, X)
    b_y = b_y.to(tl.float32) * b_y_scale
    p_dq = dq + i_row * K + o_t[:, None] * (H * K) + o_k[None, :]
    tl.store(p_dq, b_y.to(dq.dtype.element_ty), mask=m_t & m_k[None, :])
    b_r = b_r.to(tl.float32) * b_r_scale * tl.sqrt(b_lamb)
    b_da = tl.sum(b_x * (b_lamb * b_y + b_r), axis=1, keep_dims=True)
    tl.store(da_rows + i_row + o_t[:, None] * H, b_da, mask=m_t)
    i_tile = i_s * (BT // BR) + i_r
    tl.store(dlamb + (i_tile * H + i_h) * K + o_k, -tl.sum(b_x * b_y, axis=0), mask=m_k)
