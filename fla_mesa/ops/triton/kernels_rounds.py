# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false, reportAssignmentType=false
# (device code: types mean something else to Triton)
"""The solve in rounds of float16, as a Triton device function: what runs first, and for nearly every row is all that runs.

Iterative refinement in three precisions (Carson and Higham 2018): a round is conjugate gradients on what the residual asks for, in
float16 but for norms and curvatures, until the residual has shrunk 1 / GAIN times; its correction is added to a float32 x, and the residual
computed anew from the float32 states. That residual alone decides whether a row is done, so float16 costs rounds, never accuracy.

In the coordinates diag(lamb)^1/2 x the system is (S_t + 1) x = diag(lamb)^-1/2 b, S_t = diag(lamb)^-1/2 H_t diag(lamb)^-1/2, and lamb
takes no registers. The state is divided by its largest diagonal entry, each key by its own largest entry, each row of a round by its own.
What float16 cannot hold all the same (weights of keys with norms in the hundreds, say) becomes infinite, and its row makes no progress.
Such a row is left above the tolerance, for `solve_precise` to solve from the start.
"""

import triton
import triton.language as tl
from fla.ops.utils.op import exp2

from fla_mesa.ops.triton.kernels_tile import decay_mask, diagonal, inverse, scale_rows, scrub

# How far the residual of a round falls at most: more than float16 gives would be steps for nothing. A tolerance that one round reaches
# (`COARSE` of the plan) is worth some of those: they cost less than another residual.
GAIN = tl.constexpr(2.0**-8)
GAIN_ONCE = tl.constexpr(2.0**-11)
# And at least, for another round to follow: fewer steps of the float32 iteration get there then.
LEAST = tl.constexpr(2.0**-2)
# Of the tolerance, before the residual is computed anew. One round aims lower: a row that ends just above takes its tile through another.
AIM = tl.constexpr(0.9)
AIM_ONCE = tl.constexpr(0.7)


@triton.jit
def halves(b_a):
    """float32 entries of at most some thousands as float16 parts: a = high + low / 2048, 22 bits of each entry."""
    b_high = b_a.to(tl.float16)
    return b_high, ((b_a - b_high) * 2048.0).to(tl.float16)


@triton.jit
def inverse_root(lamb, o_k, K: tl.constexpr):
    """lamb^-1/2; 1 beyond the last channel."""
    return tl.rsqrt(tl.load(lamb + o_k, mask=o_k < K, other=1.0).to(tl.float32))


@triton.jit
def keys(k, lamb, o_s, o_k, T, H: tl.constexpr, K: tl.constexpr):
    """The chunk's keys over lamb^1/2, each with largest entry 1, in halves, and what to multiply them by."""
    m_sk = (o_s < T)[:, None] & (o_k < K)[None, :]
    b_k = scrub(tl.load(k + o_s[:, None] * (H * K) + o_k[None, :], mask=m_sk, other=0.0)).to(tl.float32)
    b_k, b_scale = scale_rows(b_k * inverse_root(lamb, o_k, K)[None, :])
    b_high, b_low = halves(b_k)
    return b_high, b_low, b_scale


@triton.jit
def apply_half(b_p, b_k, b_h, b_m, b_ratio):
    """(S_t + 1) p_t [BR, BK], all of it float16, the sums of the products as well."""
    b_s = tl.dot(b_p, tl.trans(b_k), out_dtype=tl.float16) * b_m
    b_y = b_p + tl.dot(b_p, b_h, out_dtype=tl.float16) * b_ratio
    return tl.dot(b_s, b_k, b_y, out_dtype=tl.float16)


@triton.jit
def apply_halves(b_d, b_k_high, b_k_low, b_h_high, b_h_low, b_m, b_ratio):
    """S_t d_t [BR, BK] float32 of float16 d, exact in it and good to 22 bits in everything else."""
    b_s = tl.dot(b_d, tl.trans(b_k_low)) * (1 / 2048)
    b_s = tl.dot(b_d, tl.trans(b_k_high), b_s) * b_m
    b_s_high = b_s.to(tl.float16)
    tl.debug_barrier()
    b_y = tl.dot(b_d, b_h_low) * (1 / 2048)
    b_y = tl.dot(b_d, b_h_high, b_y) * b_ratio
    b_y = tl.dot((b_s - b_s_high).to(tl.float16), b_k_high, b_y)
    b_y = tl.dot((b_s_high * (1 / 2048)).to(tl.float16), b_k_low, b_y)
    b_y = tl.dot(b_s_high, b_k_high, b_y)
    return b_y


@triton.jit
def right_hand_side(b, lamb, o_t, o_k, T, H: tl.constexpr, K: tl.constexpr):
    """diag(lamb)^-1/2 b in rows with largest entry 1, and what to multiply them by."""
    m_tk = (o_t < T)[:, None] & (o_k < K)[None, :]
    b_b = tl.load(b + o_t[:, None] * (H * K) + o_k[None, :], mask=m_tk, other=0.0).to(tl.float32)
    return scale_rows(b_b * inverse_root(lamb, o_k, K)[None, :])


@triton.jit
def solve_rounds(
    b, x, r, k, h, g, beta, lamb,  # b, x, r and k [., H * K] by rows; h, the state of this chunk and head [K, K], and lamb, its head's
    i_row, o_t, T, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    """As `solve_tile` of `kernels_solve`; r is float32 memory that holds the residual throughout.

    Barriers order what threads write for each other, and keep the compiler from loading early what would then spill.
    """
    # Room for the low parts of the keys and their weights in float32; otherwise every round computes them again.
    KEEP: tl.constexpr = BK <= 64
    LOWEST: tl.constexpr = GAIN_ONCE * GAIN_ONCE if ONCE else GAIN * GAIN
    SHARE: tl.constexpr = AIM_ONCE * AIM_ONCE if ONCE else AIM * AIM
    o_k = tl.arange(0, BK)
    o_s = tl.arange(0, BT)
    m_k = o_k < K
    # The start, b / diag(S_t + 1). Nothing is needed again that was computed before the diagonal.
    b_diagonal = diagonal(k + i_row * K, h, g + i_row, beta + i_row, o_t, o_k, T, H, K, BT, BR, BK, BT // 2, "tf32")
    i_first = (tl.max(tl.max(b_diagonal, axis=1)) < 0.0).to(tl.int32)  # 0
    o_tk = (o_t + i_first)[:, None] * (H * K) + o_k[None, :]
    m_tk = (o_t + i_first < T)[:, None] & m_k[None, :]
    b_b, b_scale = right_hand_side(b + i_row * K, lamb, o_t, o_k, T, H, K)
    tl.store(r + i_row * K + o_tk, b_b, mask=m_tk)
    b_root = inverse_root(lamb, o_k, K)
    b_b = b_b / (b_diagonal * (b_root * b_root)[None, :] + 1.0)
    tl.store(x + i_row * K + o_tk, b_b.to(tl.float16).to(tl.float32), mask=m_tk)
    tl.debug_barrier()

    # With c_0 and c_s the largest entries of S_0 and key s, and both divided by theirs,
    # S_t = ratio_t S_0 + sum_s M_ts k_s k_s' , ratio_t = exp2(a_t) c_0 , M_ts = exp2(a_t - a_s) beta_s c_s^2
    b_root = inverse_root(lamb, o_k, K)
    b_h = tl.load(h + o_k[:, None] * K + o_k[None, :], mask=m_k[:, None] & m_k[None, :], other=0.0)
    b_unit = inverse(tl.max(tl.load(h + o_k * (K + 1), mask=m_k, other=0.0) * b_root * b_root))
    b_h_high, b_h_low = halves(b_h * b_root[:, None] * (b_root * b_unit)[None, :])
    tl.debug_barrier()
    b_k_high, b_k_low, b_ck = keys(k + i_row * K, lamb, o_s, o_k, T, H, K)
    tl.debug_barrier()
    b_gt = tl.load(g + i_row + o_t * H, mask=o_t < T, other=0.0).to(tl.float32)
    b_fine = decay_mask(g + i_row, beta + i_row, b_gt, o_t, o_s, T, H) * tl.trans(b_ck * b_ck)
    b_m = b_fine.to(tl.float16)
    b_ratio = exp2(b_gt)[:, None] / b_unit
    b_ratio_half = b_ratio.to(tl.float16)
    tl.debug_barrier()

    b_b = tl.load(r + i_row * K + o_tk, mask=m_tk, other=0.0)
    b_rr = tl.sum(b_b * b_b, axis=1, keep_dims=True)
    b_target = b_rr * (tolerance * tolerance)
    b_open = b_rr > b_target
    b_steps = tl.zeros([BR, 1], dtype=tl.int32)
    i_step = 0
    i_zero = 0
    n_open = tl.sum(b_open.to(tl.int32))
    i_round = tl.minimum(n_open, 0)  # 0
    while n_open > 0:
        # One round: b_d corrects x. r, p and d are float16, of rows with largest entry 1. Round 0 takes no step: its d is the start, which
        # lies where x goes, and of which the residual is wanted. Its addresses are built anew, as those below: kept, they would spill.
        b_r, b_scale = scale_rows(b_b)
        b_r = tl.where(b_open, b_r, 0.0).to(tl.float16)
        b_before = tl.where(i_round == 0, float("inf"), b_rr)
        b_rr = b_rr / (b_scale * b_scale)
        b_stop = tl.maximum(b_target * SHARE / (b_scale * b_scale), b_rr * LOWEST)
        b_p = tl.zeros([BR, BK], dtype=tl.float16)
        b_beta = tl.zeros([BR, 1], dtype=tl.float16)
        o_first = (o_t + i_zero)[:, None] * (H * K) + (o_k + i_zero)[None, :]
        m_first = (o_t + i_zero < tl.where(i_round == 0, T, 0))[:, None] & (o_k + i_zero < K)[None, :]
        b_d = tl.load(x + (i_row + i_zero) * K + o_first, mask=m_first, other=0.0).to(tl.float16)
        b_active = b_open
        n_active = tl.where(i_round == 0, 0, n_open)
        while (n_active > 0) & (i_step < max_steps):
            b_p = b_r + b_beta * b_p
            b_hp = apply_half(b_p, b_k_high, b_h_high, b_m, b_ratio_half)
            b_php = tl.sum(b_hp.to(tl.float32) * b_p.to(tl.float32), axis=1, keep_dims=True)
            m_step = b_active & (b_php > 0.0)
            b_alpha = tl.where(m_step, b_rr / b_php, 0.0).to(tl.float16)
            b_d += b_alpha * b_p
            b_r -= b_alpha * b_hp
            b_rr_new = tl.sum(b_r.to(tl.float32) * b_r.to(tl.float32), axis=1, keep_dims=True)
            b_steps += b_active.to(tl.int32)
            b_active = m_step & (b_rr_new > b_stop)
            b_beta = tl.where(b_active, b_rr_new / b_rr, 0.0).to(tl.float16)
            b_rr = b_rr_new
            i_step += 1
            n_active = tl.sum(b_active.to(tl.int32))
        i_zero = tl.multiple_of(tl.minimum(n_active, 0), 128)
        i_here = i_row + i_zero
        o_tk = (o_t + i_zero)[:, None] * (H * K) + (o_k + i_zero)[None, :]
        m_tk = (o_t + i_zero < T)[:, None] & (o_k + i_zero < K)[None, :]

        # x += d , r -= (S_t + 1) d
        if not KEEP:
            b_gt = tl.load(g + i_here + (o_t + i_zero) * H, mask=o_t < T, other=0.0).to(tl.float32)
            _, b_k_low, b_ck = keys(k + i_here * K, lamb, o_s + i_zero, o_k + i_zero, T, H, K)
            tl.debug_barrier()
            b_fine = decay_mask(g + i_here, beta + i_here, b_gt, o_t + i_zero, o_s + i_zero, T, H) * tl.trans(
                b_ck * b_ck
            )
        b_b = apply_halves(b_d, b_k_high, b_k_low, b_h_high, b_h_low, b_fine, b_ratio)
        tl.debug_barrier()
        b_b = tl.load(r + i_here * K + o_tk, mask=m_tk, other=0.0) - (b_b + b_d) * b_scale
        tl.store(r + i_here * K + o_tk, b_b, mask=m_tk)
        tl.debug_barrier()
        # Always; but the compiler cannot know, and so does not keep the float32 values of b_d from above.
        b_d = tl.where(i_zero == 0, b_d, 0.0)
        m_later = (o_t + i_zero < tl.where(i_round == 0, 0, T))[:, None] & (o_k + i_zero < K)[None, :]
        b_x = tl.load(x + i_here * K + o_tk, mask=m_later, other=0.0) + b_d * b_scale
        tl.store(x + i_here * K + o_tk, b_x, mask=m_tk)
        b_rr = tl.sum(b_b * b_b, axis=1, keep_dims=True)
        b_open = b_open & (b_rr > b_target) & (b_rr < b_before * (LEAST * LEAST))
        n_open = tl.where(i_step < max_steps, tl.sum(b_open.to(tl.int32)), 0)
        i_round += 1

    # Back to the coordinates and the scale of b.
    i_here = i_row + i_zero
    o_tk = (o_t + i_zero)[:, None] * (H * K) + (o_k + i_zero)[None, :]
    m_tk = (o_t + i_zero < T)[:, None] & (o_k + i_zero < K)[None, :]
    b_start, b_scale = right_hand_side(b + i_here * K, lamb, o_t + i_zero, o_k + i_zero, T, H, K)
    b_bb = tl.sum(b_start * b_start, axis=1, keep_dims=True)
    b_nan = (b_rr - b_rr) + (b_bb - b_bb)
    b_root = inverse_root(lamb, o_k + i_zero, K)[None, :]
    b_lamb = tl.load(lamb + o_k + i_zero, mask=o_k + i_zero < K, other=1.0).to(tl.float32)[None, :]
    tl.debug_barrier()
    b_x = tl.load(x + i_here * K + o_tk, mask=m_tk, other=0.0) * b_scale * b_root + b_nan
    b_b = tl.load(r + i_here * K + o_tk, mask=m_tk, other=0.0) * b_scale * (b_lamb * b_root)
    tl.debug_barrier()
    tl.store(x + i_here * K + o_tk, b_x, mask=m_tk)
    tl.store(r + i_here * K + o_tk, b_b, mask=m_tk)
    b_relative = tl.where(b_bb > 0.0, tl.sqrt(b_rr / b_bb), 0.0) + b_nan
    return tl.reshape(b_steps, [BR]), tl.reshape(b_relative, [BR]), i_zero
