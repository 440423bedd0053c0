# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false, reportAssignmentType=false
# (device code: types mean something else to Triton)
"""The solve of 16-bit inputs, one linear system per row, by iterative refinement (Carson and Higham 2018): a round is two kernels.

With a_t the base-2 logarithm of the decay since the start of the chunk and H0 the state before the chunk, row t solves

    (H_t + diag(lamb)) x_t = b_t ,    H_t p = exp2(a_t) H0 p + sum_{s<=t} exp2(a_t - a_s) beta_s k_s (k_s'p)

In the coordinates u = diag(lamb)^1/2 x it is (S_t + 1) u = diag(lamb)^-1/2 b, S_t = diag(lamb)^-1/2 H_t diag(lamb)^-1/2: no eigenvalue is
below 1, so that the residual bounds the error, and lamb takes no registers. State, keys and rows are float16 over powers of two, the
weights of the keys over what keeps their sums within float16.

1. `solve_kernel`: conjugate gradients for a correction d, as far as float16 goes.
2. `output_kernel`, `sums_kernel`: the residual of d with keys, weights and state in 22 bits, which decides whether a row is done; x += d;
   then what x is wanted for.

The first round brings nearly every row to the tolerance. The second ends at once in tiles where it did; elsewhere its iteration, too,
multiplies in 22 bits (FINE), which solves what 11 bits make indefinite. A row that is still above the tolerance reports that.

How this differs from the textbook's conjugate gradients: the start is b / diag(H_t + diag(lamb)), as in algorithm 1 of arXiv 2506.05233,
the first pass of the loop, with a step of 1; no constant is added to a denominator, and no step depends on the scale of b; a row stops on
its own and is frozen there.
"""

import triton
import triton.language as tl
from fla.ops.utils.op import exp2
from fla.utils import autotune_cache_kwargs

from fla_mesa.ops.triton.kernels_tile import (
    decay_mask,
    dot,
    exponent,
    halves,
    inverse_root,
    load_rows,
    locate,
    poison,
    power,
    row_scale,
    scale_rows,
    scrub,
    store_rows,
    within,
)
from fla_mesa.ops.triton.plan import SOLVE_CONFIGS, solve_configs

# How far a round of float16 lets the residual of its recurrence fall at most, and where it aims, as a share of the tolerance.
GAIN = tl.constexpr(2.0**-12)
AIM = tl.constexpr(0.4)
# ||r||^2 (or ||d||^2) of a row that is lost, before anything overflows: in a round of float16, and with 22 bits.
FAR = tl.constexpr(2.0**14)
FARTHER = tl.constexpr(2.0**24)
ROOM = tl.constexpr(16.0)  # what sums of weights may reach in float16


@triton.jit
def key_exponents(k, lamb, o_s, T, H: tl.constexpr, K: tl.constexpr, BN: tl.constexpr):
    """e of the power of two that each key of the chunk over lamb^1/2 is kept over [BT, 1]; read in blocks of BN channels."""
    b_most = tl.zeros([o_s.shape[0], 1], dtype=tl.float32)
    for i_n in range(0, K, BN):
        o_n = i_n + tl.arange(0, BN)
        m_sn = (o_s < T)[:, None] & within(o_n, K)[None, :]
        b_k = scrub(tl.load(k + o_s[:, None] * (H * K) + o_n[None, :], mask=m_sn, other=0.0)).to(tl.float32)
        b_k = tl.abs(b_k * inverse_root(lamb, o_n, K)[None, :])
        b_most = tl.maximum(b_most, tl.max(b_k, axis=1, keep_dims=True))
    return exponent(b_most)


@triton.jit
def keys(k, lamb, b_e, o_s, o_k, T, H: tl.constexpr, K: tl.constexpr):
    """Channels o_k of the chunk's keys over lamb^1/2 and their powers of two, in halves [BT, .]."""
    m_sk = (o_s < T)[:, None] & within(o_k, K)[None, :]
    b_k = scrub(tl.load(k + o_s[:, None] * (H * K) + o_k[None, :], mask=m_sk, other=0.0)).to(tl.float32)
    return halves(b_k * power(-b_e) * inverse_root(lamb, o_k, K)[None, :])


@triton.jit
def weights(g, beta, h_unit, b_e, o_t, o_s, T, H: tl.constexpr):
    """M, ratio and 1 / c of S_t = c_t (ratio_t S_0 + sum_s M_ts k_s k_s'), for keys over 2^e and a state over `h_unit`.

    1 / c is NaN where a weight or the state is not finite.
    """
    b_ck = power(b_e)
    b_gt = tl.load(g + o_t * H, mask=o_t < T, other=0.0).to(tl.float32)
    b_m = decay_mask(g, beta, b_gt, o_t, o_s, T, H) * tl.trans(b_ck * b_ck)
    b_ratio = exp2(b_gt)[:, None] * tl.load(h_unit)
    b_c = tl.maximum(tl.maximum(tl.sum(b_m, axis=1, keep_dims=True), b_ratio) / ROOM, 1.0)
    b_one = power(-exponent(b_c)) + (b_c - b_c) + (b_ratio - b_ratio)
    return b_m * b_one, b_ratio * b_one, b_one


@triton.jit
def apply(b_p, b_k, b_h, b_m, b_ratio, b_y, ACC: tl.constexpr):
    """y + S_t p_t / c_t [BR, BK] of float16 p, sums in ACC."""
    b_s = tl.dot(b_p, tl.trans(b_k), out_dtype=ACC).to(tl.float16) * b_m
    b_y += tl.dot(b_p, b_h, out_dtype=ACC) * b_ratio.to(ACC)
    return tl.dot(b_s, b_k, b_y, out_dtype=ACC)


@triton.jit
def combine(b_s, b_s_low, b_k, b_k_low, b_y):
    """y + 64 sum_s s_ts k_s [BR, .] in float32, of s and keys in halves."""
    b_low = tl.dot(b_s_low, b_k)
    b_low = tl.dot(b_s, b_k_low, b_low)
    return tl.dot(b_s, b_k, b_y * (1 / 64) + b_low * (1 / 2048)) * 64


@triton.jit
def load_state(h, o_d, o_n, K: tl.constexpr):
    """Rows o_d and columns o_n of a state [K, K]."""
    return tl.load(h + o_d[:, None] * K + o_n[None, :], mask=within(o_d, K)[:, None] & within(o_n, K)[None, :], other=0.0)


@triton.jit
def squares(b_a):
    """||a_t||^2 of each row [BR, 1], in float32."""
    return tl.sum(b_a.to(tl.float32) * b_a.to(tl.float32), axis=1, keep_dims=True)


@triton.jit
def is_done(residual, o_t, T, tolerance, H: tl.constexpr):
    """Whether the round before left no row of a tile above the tolerance."""
    return tl.sum((tl.load(residual + o_t * H, mask=o_t < T, other=0.0) > tolerance).to(tl.int32)) == 0


@triton.jit
def gradient_of_x(
    do, v, k, h_kv, h_kv_scale, g, beta, lamb, o_t, o_s, o_k, T,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """diag(lamb)^-1/2 G_t do_t [BR, BK] in float32."""
    m_t, m_k = (o_t < T)[:, None], within(o_k, K)
    b_s = tl.zeros([BR, BT], dtype=tl.float32)
    b_dx = tl.zeros([BR, BK], dtype=tl.float32)
    for i_v in range(0, V, BV):
        o_v = i_v + tl.arange(0, BV)
        m_v = (o_v < V)[None, :]
        b_do = tl.load(do + o_t[:, None] * (H * V) + o_v[None, :], mask=m_t & m_v, other=0.0)
        b_v = tl.load(v + o_s[:, None] * (H * V) + o_v[None, :], mask=(o_s < T)[:, None] & m_v, other=0.0)
        b_s = dot(b_do, tl.trans(scrub(b_v)), b_s, "bf16x3")
        b_do, b_do_scale = scale_rows(b_do.to(tl.float32))
        b_g = tl.load(h_kv + o_k[None, :] * V + o_v[:, None], mask=m_k[None, :] & (o_v < V)[:, None], other=0.0)
        b_unit = tl.load(h_kv_scale + (o_k // BC) * tl.cdiv(V, BC) + i_v // BC, mask=m_k, other=0.0)
        b_dx += tl.dot(b_do.to(tl.float16), b_g) * b_do_scale * b_unit[None, :]
    b_gt = tl.load(g + o_t * H, mask=o_t < T, other=0.0).to(tl.float32)
    b_e = key_exponents(k, lamb, o_s, T, H, K, BK)
    b_k, _ = keys(k, lamb, b_e, o_s, o_k, T, H, K)
    b_s, b_s_scale = scale_rows(b_s * decay_mask(g, beta, b_gt, o_t, o_s, T, H) * tl.trans(power(b_e)))
    b_dx = b_dx * exp2(b_gt)[:, None] * inverse_root(lamb, o_k, K)[None, :]
    return b_dx + tl.dot(b_s.to(tl.float16), b_k) * b_s_scale


@triton.heuristics({"IS_VARLEN": lambda args: args["cu_seqlens"] is not None})
@triton.autotune(
    configs=SOLVE_CONFIGS,
    key=["H", "K", "V", "BT", "BR", "FIRST", "size"],
    prune_configs_by={"early_config_prune": solve_configs},
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["T", "n_chunks", "size", "max_steps"])
def solve_kernel(
    q, k, v, g, beta, lamb, h_kk, h_low, h_unit, h_kv, h_kv_scale, do, b, d, iterations, residual, cu_seqlens, chunk_indices,
    T, n_chunks, size, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, X: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr, FIRST: tl.constexpr, IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """The correction d of a tile, of what is left of its right-hand sides, b. The FIRST round makes these: of q or, where there is none,

    of do.
    """
    i_r, i_s, i_h, first, T = locate(
        tl.program_id(0), cu_seqlens, chunk_indices, T, n_chunks, H, BT, BT // BR, IS_VARLEN
    )
    o_t, o_s, o_k = i_r * BR + tl.arange(0, BR), tl.arange(0, BT), tl.arange(0, BK)
    i_row = first * H + i_h
    b += i_row * X
    d += i_row * X
    k += i_row * K
    g += i_row
    beta += i_row
    iterations += i_row
    lamb += i_h * K
    i_state = i_s * H + i_h
    h_kk += i_state * K * K
    h_unit += i_state
    m_t = (o_t < T)[:, None]
    m_tk = m_t & within(o_k, K)[None, :]
    # Where registers last, r and the sums of products are float32.
    ACC: tl.constexpr = tl.float32 if (BK <= 64 or not FIRST) else tl.float16

    if FIRST:
        b_steps = tl.zeros([BR, 1], dtype=tl.int32)
        b_relative = tl.full([BR, 1], 1.0, dtype=tl.float32)
        if do is None:
            b_b = tl.load(q + i_row * K + o_t[:, None] * (H * K) + o_k[None, :], mask=m_tk, other=0.0).to(tl.float32)
            b_b *= inverse_root(lamb, o_k, K)[None, :]
        else:
            NC: tl.constexpr = tl.cdiv(K, BC) * tl.cdiv(V, BC)
            b_b = gradient_of_x(do + i_row * V, v + i_row * V, k, h_kv + i_state * K * V, h_kv_scale + i_state * NC, g, beta, lamb,
                                o_t, o_s, o_k, T, H, K, V, BT, BR, BK, BV, BC)  # fmt: skip
        store_rows(b, b_b, o_t, o_k, T, H, K, X)
        tl.debug_barrier()
        if do is not None:
            # The compiler does not know that this is 0, so addresses and masks are not kept from above; they would spill.
            i_zero = tl.multiple_of(tl.minimum(T, 0), 128)
            o_t += i_zero
            o_s += i_zero
            o_k += i_zero
        m_t = (o_t < T)[:, None]
    else:
        b_steps = tl.load(iterations + o_t[:, None] * H, mask=m_t, other=0)
        b_relative = tl.load(residual + i_row + o_t[:, None] * H, mask=m_t, other=0.0)
        if is_done(residual + i_row, i_r * BR // TILE * TILE + tl.arange(0, TILE), T, tolerance, H):
            return

    b_h = load_state(h_kk, o_k, o_k, K)
    tl.debug_barrier()
    b_e = key_exponents(k, lamb, o_s, T, H, K, BK)
    b_k, b_k_low = keys(k, lamb, b_e, o_s, o_k, T, H, K)
    b_fine, b_ratio, b_one = weights(g, beta, h_unit, b_e, o_t, o_s, T, H)
    b_m = b_fine.to(tl.float16)
    tl.debug_barrier()
    b_b, b_scale = load_rows(b, o_t, o_k, T, H, K, X)
    if not FIRST:
        b_b, b_scale = scale_rows(b_b)
    b_p = b_b
    if FIRST:
        b_diagonal = tl.load(h_kk + o_k * (K + 1), mask=within(o_k, K), other=0.0).to(tl.float32)
        b_diagonal = tl.dot(b_m, b_k * b_k) + b_ratio * b_diagonal[None, :]
        b_p *= (b_one / (b_diagonal + b_one)).to(tl.float16)
    else:
        b_h_low = load_state(h_low + i_state * K * K, o_k, o_k, K)

    b_r = b_b.to(ACC)
    b_rr = squares(b_b)
    b_active = (b_rr > 0.0) & (b_relative > tolerance)
    b_stop = b_rr * tl.maximum(tolerance * tolerance * (AIM * AIM) / (b_relative * b_relative), GAIN * GAIN)
    b_d = tl.zeros([BR, BK], dtype=tl.float32) + ((b_rr - b_rr) + (b_one - b_one))  # NaN makes its row NaN
    i_step = -1 if FIRST else 0  # the start
    n_active = tl.sum(b_active.to(tl.int32))
    while n_active > 0:
        b_y = b_p * b_one.to(ACC)
        if FIRST:
            b_y = apply(b_p, b_k, b_h, b_m, b_ratio, b_y, ACC)
        else:
            b_p_high, b_p_low = halves(b_p)
            b_low = tl.dot(b_p_low, tl.trans(b_k), tl.dot(b_p_high, tl.trans(b_k_low)))
            b_s, b_s_low = halves(tl.dot(b_p_high, tl.trans(b_k), b_low * (1 / 2048)) * b_fine * (1 / 64))
            b_low = tl.dot(b_p_low, b_h, tl.dot(b_p_high, b_h_low))
            b_y += tl.dot(b_p_high, b_h, b_low * (1 / 2048)) * b_ratio
            b_y = combine(b_s, b_s_low, b_k, b_k_low, b_y)
        b_php = tl.sum(b_y.to(tl.float32) * b_p.to(tl.float32), axis=1, keep_dims=True)
        b_active = b_active & ((b_steps < max_steps) | (i_step < 0))
        # Less curvature than half of what the 1 in S + 1 has is float16's doing.
        m_step = b_active & ((b_php > 0.5 * b_rr * b_one) | (i_step < 0))
        b_alpha = tl.where(m_step, tl.where(i_step < 0, 1.0 / b_one, b_rr / b_php), 0.0)
        b_d += (b_alpha * b_one) * b_p
        b_r -= b_alpha.to(ACC) * b_y
        b_new = squares(b_r)
        b_steps += (b_active & (i_step >= 0)).to(tl.int32)
        b_active = m_step & (b_new > b_stop) & (b_new < FAR if FIRST else b_new < FARTHER)
        b_beta = tl.where(b_active & (i_step >= 0), b_new / b_rr, 0.0).to(b_p.dtype)
        b_p = tl.where(b_active, b_r, 0.0).to(b_p.dtype) + b_beta * b_p
        b_rr = b_new
        i_step += 1
        n_active = tl.sum(b_active.to(tl.int32))
    i_zero = tl.multiple_of(tl.minimum(n_active, 0), 128)
    o_t += i_zero
    m_t = (o_t < T)[:, None]
    o_k += i_zero
    b_d = tl.where(squares(b_d) > FAR, 0.0, b_d)
    tl.store(d + o_t[:, None] * (H * X) + o_k[None, :], b_d.to(d.dtype.element_ty), mask=m_t & within(o_k, K)[None, :])
    b_e = exponent(b_scale).to(d.dtype.element_ty)
    tl.store(d + o_t[:, None] * (H * X) + K, b_e, mask=m_t)
    tl.store(iterations + o_t[:, None] * H, b_steps, mask=m_t)


@triton.jit
def correction(d, o_t, o_n, T, H: tl.constexpr, K: tl.constexpr, X: tl.constexpr, FIRST: tl.constexpr):
    """Channels o_n of d in halves, and the power of two of each row."""
    b_d, b_scale = load_rows(d, o_t, o_n, T, H, K, X)
    if FIRST:
        return b_d, tl.zeros_like(b_d), b_scale
    else:
        b_d, b_d_low = halves(b_d)
        return b_d, b_d_low, b_scale


@triton.jit
def along_keys(
    d, k, lamb, b_e, o_t, o_s, T,
    H: tl.constexpr, K: tl.constexpr, X: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """d_t'k_s [BR, BT], the rows and the keys (over lamb^1/2) over their powers of two, to 22 bits; in blocks of BN channels."""
    b_s = tl.zeros([BR, BT], dtype=tl.float32)
    b_low = tl.zeros([BR, BT], dtype=tl.float32)
    for i_n in range(0, K, BN):
        o_n = i_n + tl.arange(0, BN)
        b_k, b_k_low = keys(k, lamb, b_e, o_s, o_n, T, H, K)
        b_d, b_d_low, _ = correction(d, o_t, o_n, T, H, K, X, FIRST)
        b_low = tl.dot(b_d, tl.trans(b_k_low), b_low)
        b_s = tl.dot(b_d, tl.trans(b_k), b_s)
        if not FIRST:
            b_low = tl.dot(b_d_low, tl.trans(b_k), b_low)
    return b_s + b_low * (1 / 2048)


@triton.jit
def refine(
    k, g, beta, lamb, h_kk, h_low, h_unit, b, d, d_before, r, x, iterations, residual, z, o_t, o_s, T, tolerance,
    H: tl.constexpr, K: tl.constexpr, X: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """x = diag(lamb)^-1/2 d and the relative residual, stored, and r = b - (S + 1) d where there is another round for it.

    After the first round d and x are the sum of both. Returns z_t.(diag(lamb)^1/2 r_t) [BR, 1] where rows z are given.
    """
    m_t = (o_t < T)[:, None]
    b_e = key_exponents(k, lamb, o_s, T, H, K, BN)
    b_s = along_keys(d, k, lamb, b_e, o_t, o_s, T, H, K, X, BT, BR, BN, FIRST)
    b_m, b_ratio, b_one = weights(g, beta, h_unit, b_e, o_t, o_s, T, H)
    b_s, b_s_low = halves(b_s * b_m * (1 / 64))

    # A second pass, where there is another round, takes back what made a row worse, its steps as well, and stores r.
    b_keep = tl.full([BR, 1], 1.0, dtype=tl.float32)
    b_relative = tl.zeros([BR, 1], dtype=tl.float32)
    b_sum = tl.zeros([BR, 1], dtype=tl.float32)
    i_pass = 0
    n_passes = 1
    while i_pass < n_passes:
        i_zero = tl.multiple_of(tl.minimum(i_pass + T, 0), 128)
        o_p, o_q = o_t + i_zero, o_s + i_zero
        b_bb = tl.zeros([BR, 1], dtype=tl.float32)
        b_rr = tl.zeros([BR, 1], dtype=tl.float32)
        b_sum = tl.zeros([BR, 1], dtype=tl.float32)
        for i_n in range(0, K, BN):
            o_n = i_n + tl.arange(0, BN)
            b_y = tl.zeros([BR, BN], dtype=tl.float32)
            b_low = tl.zeros([BR, BN], dtype=tl.float32)
            for i_d in range(0, K, BN):
                o_d = i_d + tl.arange(0, BN)
                b_d, b_d_low, _ = correction(d, o_p, o_d, T, H, K, X, FIRST)
                b_h = load_state(h_kk, o_d, o_n, K)
                b_low = tl.dot(b_d, load_state(h_low, o_d, o_n, K), b_low)
                b_y = tl.dot(b_d, b_h, b_y)
                if not FIRST:
                    b_low = tl.dot(b_d_low, b_h, b_low)
            b_y = (b_y + b_low * (1 / 2048)) * b_ratio
            tl.debug_barrier()
            b_k, b_k_low = keys(k, lamb, b_e, o_q, o_n, T, H, K)
            b_y = combine(b_s, b_s_low, b_k, b_k_low, b_y) / b_one
            tl.debug_barrier()
            b_d, b_scale = load_rows(d, o_p, o_n, T, H, K, X)
            b_b, b_b_scale = load_rows(b, o_p, o_n, T, H, K, X)
            b_b = b_b.to(tl.float32) * (b_b_scale / b_scale)
            b_r = b_b - b_keep * (b_y + b_d.to(tl.float32))
            b_bb += squares(b_b)
            b_rr += squares(b_r)
            if FIRST:
                m_again = (o_p < tl.where(i_pass > 0, T, 0))[:, None] & (o_n < K)[None, :]
                tl.store(r + o_p[:, None] * (H * X) + o_n[None, :], b_r * b_scale, mask=m_again)
            if z is not None:
                b_z, b_z_scale = load_rows(z, o_p, o_n, T, H, K, X)
                b_v = b_z.to(tl.float32) * (b_r / inverse_root(lamb, o_n, K)[None, :])
                b_sum += tl.sum(b_v, axis=1, keep_dims=True) * (b_scale * b_z_scale)
        b_relative = tl.where(b_bb == 0.0, 0.0, tl.sqrt(b_rr / b_bb))
        if FIRST:
            b_keep = tl.where(b_relative >= 1.0, 0.0, 1.0)
            n_passes = tl.where(tl.sum((b_relative > tolerance).to(tl.int32)) > 0, 2, 1)
        else:
            b_relative *= tl.load(residual + o_p[:, None] * H, mask=(o_p < T)[:, None], other=0.0)
        i_pass += 1
    tl.debug_barrier()

    tl.store(residual + o_t[:, None] * H, b_relative, mask=m_t)
    b_most = tl.zeros([BR, 1], dtype=tl.float32)
    for i_n in range(0, K, BN):
        o_n = i_n + tl.arange(0, BN)
        b_d, b_scale = load_rows(d, o_t, o_n, T, H, K, X)
        b_d = b_d.to(tl.float32) * (b_scale * b_keep)
        if not FIRST:
            b_before, b_before_scale = load_rows(d_before, o_t, o_n, T, H, K, X)
            b_d += b_before.to(tl.float32) * b_before_scale
        b_most = tl.maximum(b_most, tl.max(tl.abs(b_d * inverse_root(lamb, o_n, K)[None, :]), axis=1, keep_dims=True))
    b_e = exponent(b_most)
    for i_n in range(0, K, BN):
        o_n = i_n + tl.arange(0, BN)
        m_tn = m_t & (o_n < K)[None, :]
        b_d, b_scale = load_rows(d, o_t, o_n, T, H, K, X)
        b_d = b_d.to(tl.float32) * (b_scale * b_keep)
        if FIRST:
            tl.store(d + o_t[:, None] * (H * X) + o_n[None, :], tl.zeros([BR, BN], dtype=tl.float16), mask=m_tn & (b_keep == 0.0))
        else:
            b_before, b_before_scale = load_rows(d_before, o_t, o_n, T, H, K, X)
            b_d += b_before.to(tl.float32) * b_before_scale
            tl.store(d + o_t[:, None] * (H * X) + o_n[None, :], b_d * power(-b_e), mask=m_tn)
        b_x = b_d * (power(-b_e) * inverse_root(lamb, o_n, K)[None, :])
        tl.store(x + o_t[:, None] * (H * X) + o_n[None, :], b_x.to(tl.float16), mask=m_tn)
    tl.debug_barrier()
    tl.store(x + o_t[:, None] * (H * X) + K, b_e.to(tl.float16), mask=m_t)
    if FIRST:
        tl.store(r + o_t[:, None] * (H * X) + K, tl.zeros([BR, 1], dtype=tl.float32), mask=(o_t < tl.where(n_passes > 1, T, 0))[:, None])
        tl.store(iterations + o_t[:, None] * H, tl.zeros([BR, 1], dtype=tl.int32), mask=m_t & (b_keep == 0.0))
    else:
        tl.store(d + o_t[:, None] * (H * X) + K, b_e.to(tl.float32), mask=m_t)
    return b_sum


@triton.heuristics({"IS_VARLEN": lambda args: args["cu_seqlens"] is not None})
@triton.autotune(
    configs=SOLVE_CONFIGS,
    key=["H", "K", "V", "BT", "BR", "FIRST", "size"],
    prune_configs_by={"early_config_prune": solve_configs},
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["T", "n_chunks", "size"])
def output_kernel(
    k, v, g, beta, lamb, h_kk, h_low, h_unit, h_kv, h_kv_scale, b, d, d_before, r, x, o, iterations, residual, cu_seqlens, chunk_indices,
    T, n_chunks, size, tolerance,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, X: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr,
    BV: tl.constexpr, BC: tl.constexpr, FIRST: tl.constexpr, IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """The end of a forward round: x_t and its residual, and o_t = G_t'x_t."""
    i_r, i_s, i_h, first, T = locate(
        tl.program_id(0), cu_seqlens, chunk_indices, T, n_chunks, H, BT, BT // BR, IS_VARLEN
    )
    o_t, o_s = i_r * BR + tl.arange(0, BR), tl.arange(0, BT)
    i_row = first * H + i_h
    i_state = i_s * H + i_h
    if not FIRST:
        if is_done(residual + i_row, o_t, T, tolerance, H):
            return
    refine(
        k + i_row * K, g + i_row, beta + i_row, lamb + i_h * K, h_kk + i_state * K * K, h_low + i_state * K * K,
        h_unit + i_state, b + i_row * X, d + i_row * X, d_before + i_row * X, r + i_row * X, x + i_row * X, iterations + i_row, residual + i_row, None, o_t, o_s, T, tolerance,
        H, K, X, BT, BR, BN, FIRST,
    )  # fmt: skip
    # o = sum_s M_ts (x_t'k_s) v_s + exp2(a_t) G'x_t, the first of d: where keys weigh much, the rounding of x would show
    tl.debug_barrier()
    i_zero = tl.multiple_of(tl.minimum(T, 0), 128)
    o_t += i_zero
    o_s += i_zero
    b_e = key_exponents(k + i_row * K, lamb + i_h * K, o_s, T, H, K, BN)
    b_xk = along_keys(d + i_row * X, k + i_row * K, lamb + i_h * K, b_e, o_t, o_s, T, H, K, X, BT, BR, BN, FIRST)
    b_xk *= row_scale(d + i_row * X, o_t, T, H, K, X) * tl.trans(power(b_e))
    b_gt = tl.load(g + i_row + o_t * H, mask=o_t < T, other=0.0).to(tl.float32)
    b_xk *= decay_mask(g + i_row, beta + i_row, b_gt, o_t, o_s, T, H)
    h_kv += i_state * K * V
    h_kv_scale += i_state * tl.cdiv(K, BC) * tl.cdiv(V, BC)
    for i_v in range(0, V, BV):
        o_v = i_v + tl.arange(0, BV)
        m_v = (o_v < V)[None, :]
        b_o = tl.zeros([BR, BV], dtype=tl.float32)
        for i_n in range(0, K, BN):
            o_n = i_n + tl.arange(0, BN)
            b_x, b_scale = load_rows(x + i_row * X, o_t, o_n, T, H, K, X)
            b_g = tl.load(h_kv + o_n[:, None] * V + o_v[None, :], mask=(o_n < K)[:, None] & m_v, other=0.0)
            b_o += tl.dot(b_x, b_g) * (b_scale * tl.load(h_kv_scale + i_n // BC * tl.cdiv(V, BC) + i_v // BC))
        b_v = tl.load(v + i_row * V + o_s[:, None] * (H * V) + o_v[None, :], mask=(o_s < T)[:, None] & m_v, other=0.0)
        b_o = poison(dot(b_xk, scrub(b_v), b_o * exp2(b_gt)[:, None], "bf16x3"), b_v, o_t, o_s)
        p_o = o + i_row * V + o_t[:, None] * (H * V) + o_v[None, :]
        tl.store(p_o, b_o.to(o.dtype.element_ty), mask=(o_t < T)[:, None] & m_v)


@triton.heuristics({"IS_VARLEN": lambda args: args["cu_seqlens"] is not None})
@triton.autotune(
    configs=SOLVE_CONFIGS,
    key=["H", "K", "BT", "BR", "FIRST", "size"],
    prune_configs_by={"early_config_prune": solve_configs},
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["T", "n_chunks", "size"])
def sums_kernel(
    k, g, beta, lamb, h_kk, h_low, h_unit, b, d, d_before, r, x, y, dq, da_rows, dlamb, iterations, residual, cu_seqlens, chunk_indices,
    T, n_chunks, size, tolerance,
    H: tl.constexpr, K: tl.constexpr, X: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr,
    FIRST: tl.constexpr, IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """The end of a backward round: y_t, which is dq_t; the tile's part of dlamb = - sum_t x_t * y_t; and what each row's decay receives,

    x_t.(G_t do_t) - x_t.(H_t y_t) = x_t.(lamb * y_t + r_t) ,    r_t the residual of the solve.
    """
    i_r, i_s, i_h, first, T = locate(
        tl.program_id(0), cu_seqlens, chunk_indices, T, n_chunks, H, BT, BT // BR, IS_VARLEN
    )
    o_t, o_s = i_r * BR + tl.arange(0, BR), tl.arange(0, BT)
    i_row = first * H + i_h
    i_state = i_s * H + i_h
    if not FIRST:
        if is_done(residual + i_row, o_t, T, tolerance, H):
            return
    b_da = refine(
        k + i_row * K, g + i_row, beta + i_row, lamb + i_h * K, h_kk + i_state * K * K, h_low + i_state * K * K,
        h_unit + i_state, b + i_row * X, d + i_row * X, d_before + i_row * X, r + i_row * X, y + i_row * X, iterations + i_row, residual + i_row, x + i_row * X,
        o_t, o_s, T, tolerance, H, K, X, BT, BR, BN, FIRST,
    )  # fmt: skip
    tl.debug_barrier()
    i_zero = tl.multiple_of(tl.minimum(T, 0), 128)
    o_t += i_zero
    m_t = (o_t < T)[:, None]
    dlamb += ((i_s * (BT // BR) + i_r) * H + i_h) * K
    for i_n in range(0, K, BN):
        o_n = i_n + tl.arange(0, BN)
        b_x, b_x_scale = load_rows(x + i_row * X, o_t, o_n, T, H, K, X)
        b_y, b_y_scale = load_rows(y + i_row * X, o_t, o_n, T, H, K, X)
        b_x = b_x.to(tl.float32) * b_x_scale
        b_y = b_y.to(tl.float32) * b_y_scale
        p_dq = dq + i_row * K + o_t[:, None] * (H * K) + o_n[None, :]
        tl.store(p_dq, b_y.to(dq.dtype.element_ty), mask=m_t & (o_n < K)[None, :])
        tl.store(dlamb + o_n, -tl.sum(b_x * b_y, axis=0), mask=o_n < K)
        b_lamb = tl.load(lamb + i_h * K + o_n, mask=o_n < K, other=0.0).to(tl.float32)[None, :]
        b_da += tl.sum(b_x * (b_lamb * b_y), axis=1, keep_dims=True)
    tl.store(da_rows + i_row + o_t[:, None] * H, b_da, mask=m_t)
