"""A prototype: one round of the solve a launch, in straight-line code, with the refined residual in a function that is not inlined.

See docs/log.md of the project, 2026-11-27, "A solve without a loop over rounds". `x` and `r` are float16 rows [., H, K + 8] with their exponent in column K;
`h` [chunks, H, 2, K, K] float16 holds a high and a low part (times 2048) of diag(lamb)^-1/2 H diag(lamb)^-1/2 over the scales of its row and column of
blocks, `h_scale` [chunks, H, K / 64]; further launches (i_round = 1, 2) take what the first left above the tolerance. ACC32: sums, r and d in float32.
Checked in the interpreter against float64 by solve_straight_check.py; compiled, never run on a GPU.
"""
import triton
import triton.language as tl
from fla.ops.utils.op import exp2

GAIN = tl.constexpr(2.0**-12)
LEAST = tl.constexpr(2.0**-2)
AIM = tl.constexpr(0.4)
FAR = tl.constexpr(2.0**24)
ROOM = tl.constexpr(64.0)

@triton.jit
def scrub(b_a):
    return tl.where(tl.abs(b_a.to(tl.float32)) < float("inf"), b_a, 0.0).to(b_a.dtype)

@triton.jit
def exponent(b_largest):
    return tl.minimum(tl.maximum((b_largest.to(tl.int32, bitcast=True) >> 23) - 127, -126), 126)

@triton.jit
def power(b_e):
    return ((b_e + 127) << 23).to(tl.float32, bitcast=True)

@triton.jit
def load_rows(x, o_t, o_k, T, H: tl.constexpr, K: tl.constexpr, X: tl.constexpr):
    m_t = o_t < T
    b_x = tl.load(x + o_t[:, None] * (H * X) + o_k[None, :], mask=m_t[:, None] & (o_k < K)[None, :], other=0.0)
    if X > K:
        b_e = tl.load(x + o_t[:, None] * (H * X) + K, mask=m_t[:, None], other=0.0)
        return b_x, power(b_e.to(tl.int32))
    else:
        return b_x, 1.0

@triton.jit
def store_rows(x, b_x, o_t, o_k, T, H: tl.constexpr, K: tl.constexpr, X: tl.constexpr):
    m_t = o_t < T
    b_e = exponent(tl.max(tl.abs(b_x), axis=1, keep_dims=True))
    b_x = (b_x * power(-b_e)).to(tl.float16)
    tl.store(x + o_t[:, None] * (H * X) + o_k[None, :], b_x, mask=m_t[:, None] & (o_k < K)[None, :])
    tl.store(x + o_t[:, None] * (H * X) + K, b_e.to(tl.float16), mask=m_t[:, None])
    return b_x, power(b_e)

@triton.jit
def decay_mask(g, beta, b_gt, o_t, o_s, T, H: tl.constexpr):
    m_s = o_s < T
    b_gs = tl.load(g + o_s * H, mask=m_s, other=0.0).to(tl.float32)
    b_beta = tl.load(beta + o_s * H, mask=m_s, other=0.0).to(tl.float32)
    m_causal = (o_t[:, None] >= o_s[None, :]) & (o_t < T)[:, None] & m_s[None, :]
    return tl.where(m_causal, exp2(tl.minimum(b_gt[:, None] - b_gs[None, :], 0.0)) * b_beta[None, :], 0.0)

@triton.jit
def load_keys(k, lamb, o_s, o_k, T, H: tl.constexpr, K: tl.constexpr):
    m_sk = (o_s < T)[:, None] & (o_k < K)[None, :]
    b_root = tl.rsqrt(tl.load(lamb + o_k, mask=o_k < K, other=1.0).to(tl.float32))
    b_k = tl.load(k + o_s[:, None] * (H * K) + o_k[None, :], mask=m_sk, other=0.0)
    b_k = b_k.to(tl.float32) * b_root[None, :]
    b_e = exponent(tl.max(tl.abs(b_k), axis=1, keep_dims=True))
    return b_k * power(-b_e), power(b_e)

@triton.jit
def load_state(h, scale, o_k, K: tl.constexpr, BC: tl.constexpr):
    m_k = o_k < K
    b_h = tl.load(h + o_k[:, None] * K + o_k[None, :], mask=m_k[:, None] & m_k[None, :], other=0.0)
    if K > BC:
        b_s = tl.load(scale + o_k // BC, mask=m_k, other=0.0)
        b_s = (b_s / tl.max(b_s)).to(tl.float16)
        b_h = b_h * b_s[:, None] * b_s[None, :]
    return b_h

@triton.jit
def squares(b_a):
    return tl.sum(b_a.to(tl.float32) * b_a.to(tl.float32), axis=1, keep_dims=True)


@triton.jit
def operands(k, g, beta, lamb, h, h_scale, o_t, o_s, o_k, T, H: tl.constexpr, K: tl.constexpr, BC: tl.constexpr):
    b_h = load_state(h, h_scale, o_k, K, BC)
    b_unit = tl.max(tl.load(h_scale + o_k // BC, mask=o_k < K, other=0.0))
    tl.debug_barrier()
    b_k, b_ck = load_keys(k, lamb, o_s, o_k, T, H, K)
    b_k = scrub(b_k).to(tl.float16)
    tl.debug_barrier()
    b_gt = tl.load(g + o_t * H, mask=o_t < T, other=0.0).to(tl.float32)
    b_m = decay_mask(g, beta, b_gt, o_t, o_s, T, H) * tl.trans(b_ck * b_ck)
    b_ratio = exp2(b_gt)[:, None] * (b_unit * b_unit)
    b_c = tl.maximum(tl.maximum(tl.sum(b_m, axis=1, keep_dims=True), b_ratio) / ROOM, 1.0)
    b_one = power(-exponent(b_c)) + (b_c - b_c)
    return b_h, b_k, (b_m * b_one).to(tl.float16), b_ratio * b_one, b_one

@triton.jit(noinline=True)
def refine(k, g, beta, lamb, h, h_scale, x, d, r, residual, i_r, i_round, T, tolerance,
           H: tl.constexpr, K: tl.constexpr, X: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr):
    o_t = i_r * BR + tl.arange(0, BR)
    o_s = tl.arange(0, BT)
    o_k = tl.arange(0, BK)
    m_t = (o_t < T)[:, None]
    b_h, b_k, b_m, b_ratio, b_one = operands(k, g, beta, lamb, h, h_scale, o_t, o_s, o_k, T, H, K, BC)
    tl.debug_barrier()
    b_l, b_cl = load_keys(k, lamb, o_s, o_k, T, H, K)
    b_l = ((b_l - b_l.to(tl.float16).to(tl.float32)) * 2048.0).to(tl.float16)
    b_d = tl.load(d + o_t[:, None] * (H * K) + o_k[None, :], mask=m_t & (o_k < K)[None, :], other=0.0)
    b_s = tl.dot(b_d, tl.trans(b_l)) * (1 / 2048)
    b_s = tl.dot(b_d, tl.trans(b_k), b_s).to(tl.float16) * b_m
    tl.debug_barrier()
    b_e = tl.dot(b_d, load_state(h + K * K, h_scale, o_k, K, BC)) * (1 / 2048)
    b_e = tl.dot(b_d, b_h, b_e) * b_ratio
    b_e = tl.dot(b_s, b_k, b_e) / b_one
    tl.debug_barrier()
    b_b, b_scale = load_rows(r, o_t, o_k, T, H, K, X)
    b_e = b_b.to(tl.float32) - (b_e + b_d.to(tl.float32))
    b_bb, b_new = squares(b_b), squares(b_e)
    m_finite = b_new < float("inf")
    b_d = tl.where(m_finite, b_d, 0.0)
    b_e = tl.where(m_finite, b_e, b_b.to(tl.float32)) * b_scale
    b_new = tl.where(m_finite, b_new, b_bb)
    b_relative = tl.load(residual + o_t[:, None] * H, mask=(o_t < tl.where(i_round > 0, T, 0))[:, None], other=1.0)
    b_relative = tl.where(b_bb > 0.0, b_relative * tl.sqrt(b_new / b_bb), 0.0) + (b_bb - b_bb)
    tl.debug_barrier()
    store_rows(r, b_e, o_t, o_k, T, H, K, X)
    tl.store(residual + o_t[:, None] * H, b_relative, mask=m_t)
    b_root = tl.rsqrt(tl.load(lamb + o_k, mask=o_k < K, other=1.0).to(tl.float32))
    b_y = b_d.to(tl.float32) * (b_scale * b_root[None, :]) + (b_bb - b_bb)
    b_old, b_os = load_rows(x, o_t, o_k, tl.where(i_round > 0, T, 0), H, K, X)
    tl.debug_barrier()
    store_rows(x, b_y + b_old.to(tl.float32) * b_os, o_t, o_k, T, H, K, X)
    tl.debug_barrier()

@triton.jit
def solve16_kernel(
    b, k, g, beta, lamb, h, h_scale, x, d, r, z, da, iterations, residual, i_round, T, n_chunks, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, B: tl.constexpr, X: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    BC: tl.constexpr, ACC32: tl.constexpr, UNROLL: tl.constexpr,
):
    ACC: tl.constexpr = tl.float32 if ACC32 else tl.float16
    i_p = tl.program_id(0).to(tl.int64)
    i_r = (i_p % (BT // BR)).to(tl.int32)
    i_c = (i_p // (BT // BR)) % n_chunks
    i_bh = i_p // ((BT // BR) * n_chunks)
    i_b, i_h = i_bh // H, i_bh % H
    i_s = i_b * n_chunks + i_c
    first = i_b * T + i_c * BT
    T = tl.minimum(T - i_c * BT, BT).to(tl.int32)
    i_row = first * H + i_h
    o_t = i_r * BR + tl.arange(0, BR)
    o_s = tl.arange(0, BT)
    o_k = tl.arange(0, BK)
    b += i_row * B
    x += i_row * X
    r += i_row * X
    d += i_row * K
    k += i_row * K
    g += i_row
    beta += i_row
    lamb += i_h * K
    h += (i_s * H + i_h) * 2 * K * K
    h_scale += (i_s * H + i_h) * tl.cdiv(K, BC)
    # right-hand side
    if i_round == 0:
        b_root = tl.rsqrt(tl.load(lamb + o_k, mask=o_k < K, other=1.0).to(tl.float32))
        b_q, b_qs = load_rows(b, o_t, o_k, T, H, K, B)
        store_rows(r, b_q.to(tl.float32) * (b_qs * b_root[None, :]), o_t, o_k, T, H, K, X)
    tl.debug_barrier()
    m_t = (o_t < T)[:, None]
    m_tk = m_t & (o_k < K)[None, :]
    if True:
        b_h, b_k, b_m, b_ratio, b_one = operands(k, g, beta, lamb, h, h_scale, o_t, o_s, o_k, T, H, K, BC)
        b_diagonal = tl.load(h + o_k * (K + 1), mask=o_k < K, other=0.0).to(tl.float32)
        b_diagonal = tl.dot(b_m, b_k * b_k) + b_ratio * b_diagonal[None, :]
        tl.debug_barrier()
        b_b, b_scale = load_rows(r, o_t, o_k, T, H, K, X)
        b_p = b_b * tl.where(i_round == 0, b_one / (b_diagonal + b_one), 1.0).to(tl.float16)
        b_relative = tl.load(residual + i_row + o_t[:, None] * H, mask=(o_t < tl.where(i_round > 0, T, 0))[:, None], other=1.0)
        b_rr = squares(b_b)
        b_active = (b_rr > 0.0) & (b_relative > tolerance)
        b_stop = b_rr * tl.maximum(tolerance * tolerance * (AIM * AIM) / (b_relative * b_relative), GAIN * GAIN)
        b_steps = tl.load(iterations + i_row + o_t[:, None] * H, mask=(o_t < tl.where(i_round > 0, T, 0))[:, None], other=0)
        b_r = b_b.to(ACC)
        b_d = tl.zeros([BR, BK], dtype=ACC)
        i_step = tl.where(i_round == 0, -1, 0)
        n_active = tl.sum(b_active.to(tl.int32))
        while n_active > 0:
            for _ in tl.static_range(UNROLL):
                b_s = tl.dot(b_p, tl.trans(b_k), out_dtype=ACC).to(tl.float16) * b_m
                b_y = b_p * b_one.to(ACC) + tl.dot(b_p, b_h, out_dtype=ACC) * b_ratio.to(ACC)
                b_y = tl.dot(b_s, b_k, b_y, out_dtype=ACC)
                b_php = tl.sum(b_y.to(tl.float32) * b_p.to(tl.float32), axis=1, keep_dims=True)
                b_active = b_active & ((b_steps < max_steps) | (i_step < 0))
                m_step = b_active & ((b_php > 0.0) | (i_step < 0))
                b_alpha = tl.where(m_step, tl.where(i_step < 0, 1.0 / b_one, b_rr / b_php), 0.0)
                b_d += (b_alpha * b_one).to(ACC) * b_p
                b_r -= b_alpha.to(ACC) * b_y
                b_new = squares(b_r)
                b_steps += (b_active & (i_step >= 0)).to(tl.int32)
                b_active = m_step & (b_new > b_stop) & (b_new < FAR)
                b_beta = tl.where(b_active & (i_step >= 0), b_new / b_rr, 0.0).to(tl.float16)
                b_p = b_r.to(tl.float16) + b_beta * b_p
                b_rr = b_new
                i_step += 1
            n_active = tl.sum(b_active.to(tl.int32))
        tl.debug_barrier()
        tl.store(d + o_t[:, None] * (H * K) + o_k[None, :], b_d.to(tl.float16), mask=m_tk)
        tl.store(iterations + i_row + o_t[:, None] * H, b_steps, mask=m_t)
        tl.debug_barrier()
        i_zero = tl.multiple_of(tl.minimum(n_active, 0), 128)
        refine(k, g, beta, lamb, h, h_scale, x, d, r, residual + i_row, i_r, i_round, T, tolerance, H, K, X, BT, BR, BK, BC)
    if z is not None:
        b_lamb = tl.load(lamb + o_k, mask=o_k < K, other=1.0).to(tl.float32)[None, :]
        b_u, b_us = load_rows(x, o_t, o_k, T, H, K, X)
        b_e, b_es = load_rows(r, o_t, o_k, T, H, K, X)
        b_z, b_zs = load_rows(z + i_row * X, o_t, o_k, T, H, K, X)
        b_v = b_lamb * (b_u.to(tl.float32) * b_us) + tl.sqrt(b_lamb) * (b_e.to(tl.float32) * b_es)
        b_da = tl.sum(b_z.to(tl.float32) * b_v, axis=1, keep_dims=True) * b_zs
        tl.store(da + i_row + o_t[:, None] * H, b_da, mask=m_t)
