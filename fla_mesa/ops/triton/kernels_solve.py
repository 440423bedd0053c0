# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false, reportAssignmentType=false
# (device code: types mean something else to Triton)
"""The solve, forward with the output and backward with what feeds it: one linear system per row.

With a_t the base-2 logarithm of the decay since the start of the chunk and H0 the state before the chunk, row t solves

    (H_t + diag(lamb)) x_t = b_t ,    H_t p = exp2(a_t) H0 p + sum_{s<=t} exp2(a_t - a_s) beta_s k_s (k_s'p)

in rounds of float16, which are below, or by the float32 iteration of `kernels_precise`: the plan says which.

Rounds are iterative refinement in three precisions (Carson and Higham 2018): a round is conjugate gradients on what the residual asks for,
in float16 but for norms and curvatures, until the residual has shrunk 1 / GAIN times; its correction is added to a float32 x, and the
residual computed anew from the float32 states. That residual alone decides whether a row is done, so float16 costs rounds, never accuracy.

In the coordinates diag(lamb)^1/2 x the system is (S_t + 1) x = diag(lamb)^-1/2 b, S_t = diag(lamb)^-1/2 H_t diag(lamb)^-1/2, and lamb
takes no registers. The state is divided by its largest diagonal entry, each key by its own largest entry, each row of a round by its own.
"""

import triton
import triton.language as tl
from fla.ops.utils.op import exp2
from fla.utils import autotune_cache_kwargs

from fla_mesa.ops.triton.kernels_precise import solve_precise
from fla_mesa.ops.triton.kernels_tile import attend, decay_mask, diagonal, inverse, locate, scale_rows, scrub
from fla_mesa.ops.triton.plan import SOLVE_CONFIGS, solve_configs

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
    """As `solve`; r is float32 memory that holds the residual throughout.

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


@triton.jit
def solve(
    b, x, r, k, h, g, beta, lamb, iterations, residual,  # b, x, r and k [., H * K] by rows; h [K, K] and lamb, of this chunk and head
    i_row, o_t, T, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BS: tl.constexpr,
    BD: tl.constexpr, RESIDENT: tl.constexpr, REFINE: tl.constexpr, PRECISION: tl.constexpr,
    FINE: tl.constexpr,
):  # fmt: skip
    """Solve (H_t + diag(lamb)) x_t = b_t for the rows o_t; store x, the steps, the relative residual in the norm weighted by 1 / lamb and,
    where r is given, the residual b - (H_t + diag(lamb)) x itself.

    Returns `i_zero`: 0, but the compiler cannot know that before the iteration ends. Addresses of what follows, built on it, are not
    computed early and kept, which would spill the registers of the iteration.
    """
    if PRECISION == "fp16" or PRECISION == "fp16 once":
        b_steps, b_relative, i_zero = solve_rounds(
            b, x, r, k, h, g, beta, lamb, i_row, o_t, T, max_steps, tolerance, H, K, BT, BR, BK, PRECISION == "fp16 once"
        )  # fmt: skip
    else:
        # A plain if, because a pointer that may be None has no address to add to.
        if r is not None:
            r += i_row * K
        b_steps, b_relative, i_zero = solve_precise(
            b + i_row * K, x + i_row * K, r, k + i_row * K, h, g + i_row, beta + i_row, lamb, o_t, T, max_steps, tolerance,
            H, K, BT, BR, BK, BS, BD, RESIDENT, REFINE, PRECISION, FINE,
        )  # fmt: skip
    i_row += i_zero
    o_t += i_zero
    tl.store(residual + i_row + o_t * H, b_relative, mask=o_t < T)
    if iterations is not None:
        tl.store(iterations + i_row + o_t * H, b_steps, mask=o_t < T)
    tl.debug_barrier()
    if PRECISION == "fp16" or PRECISION == "fp16 once":
        n_left = tl.sum(((b_relative <= tolerance) == 0).to(tl.int32))
        if n_left > 0:
            solve_rest(b + i_row * K, x + i_row * K, r + i_row * K, k + i_row * K, h, g + i_row, beta + i_row, lamb, iterations,
                       residual + i_row, i_row, tl.min(o_t), T, max_steps, tolerance, H, K, BT, BR, BK, BS, BD, FINE)  # fmt: skip
    return i_zero


@triton.jit
def solve_rest(
    b, x, r, k, h, g, beta, lamb, iterations, residual, i_row, i_first, T, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BS: tl.constexpr,
    BD: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    """By the float32 iteration, 16 at a time, those rows of a tile whose residual is above the tolerance or NaN."""
    for i_r in range(0, BR, 16):
        o_t = i_first + i_r + tl.arange(0, 16)
        b_relative = tl.load(residual + o_t * H, mask=o_t < T, other=0.0)
        # The other rows are moved past the end of the chunk, where nothing is read or written.
        o_t = tl.where(b_relative <= tolerance, BT, o_t)
        if tl.min(o_t) < T:
            b_steps, b_relative, _ = solve_precise(b, x, r, k, h, g, beta, lamb, o_t, T, max_steps, tolerance,
                                                   H, K, BT, 16, BK, BS, BD, False, True, "bf16x3", FINE)  # fmt: skip
            tl.store(residual + o_t * H, b_relative, mask=o_t < T)
            if iterations is not None:
                tl.store(iterations + i_row + o_t * H, b_steps, mask=o_t < T)
    tl.debug_barrier()


@triton.heuristics({"IS_VARLEN": lambda args: args["cu_seqlens"] is not None})
@triton.autotune(
    configs=SOLVE_CONFIGS,
    key=["H", "K", "V", "BT", "RESIDENT", "REFINE", "PRECISION", "FINE", "size"],
    prune_configs_by={"early_config_prune": solve_configs},
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["T", "n_chunks", "size", "max_steps"])
def solve_output_kernel(
    q, k, v, g, beta, lamb, h_kk, h_kv, x, o, iterations, residual, r, cu_seqlens, chunk_indices,
    T, n_chunks, size, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
    RESIDENT: tl.constexpr, REFINE: tl.constexpr, PRECISION: tl.constexpr, FINE: tl.constexpr, IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """x_t = (H_t + diag(lamb))^-1 q_t and o_t = G_t'x_t for the rows of a tile."""
    i_r, i_s, i_h, first, T = locate(
        tl.program_id(0), cu_seqlens, chunk_indices, T, n_chunks, H, BT, BT // BR, IS_VARLEN
    )
    o_t = i_r * BR + tl.arange(0, BR)
    i_row = first * H + i_h
    i_zero = solve(
        q, x, r, k, h_kk + (i_s * H + i_h) * K * K, g, beta, lamb + i_h * K, iterations, residual, i_row, o_t, T, max_steps, tolerance,
        H, K, BT, BR, BK, BS, BD, RESIDENT, REFINE, PRECISION, FINE,
    )  # fmt: skip
    i_row += i_zero
    o_t += i_zero
    m_t = o_t < T
    h_kv += ((i_s + i_zero) * H + i_h) * K * V
    # What an output of 16 bits does not show need not be computed.
    OUT: tl.constexpr = FINE if o.dtype.element_ty == tl.float32 else "bf16x3"
    for i_v in range(0, V, BV):
        o_v = i_v + tl.arange(0, BV)
        b_o = attend(x + i_row * K, H * K, k + i_row * K, H * K, v + i_row * V, H * V, h_kv, V, 1, g + i_row, beta + i_row,
                     o_t, o_v, T, V, i_zero, H, K, BT, BR, BV, BS, BD, OUT, True)  # fmt: skip
        p_o = o + i_row * V + o_t[:, None] * (H * V) + o_v[None, :]
        tl.store(p_o, b_o.to(o.dtype.element_ty), mask=m_t[:, None] & (o_v < V)[None, :])


@triton.heuristics({"IS_VARLEN": lambda args: args["cu_seqlens"] is not None})
@triton.autotune(
    configs=SOLVE_CONFIGS,
    key=["H", "K", "V", "BT", "RESIDENT", "REFINE", "PRECISION", "FINE", "size"],
    prune_configs_by={"early_config_prune": solve_configs},
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["T", "n_chunks", "size", "max_steps"])
def solve_backward_kernel(
    k, v, g, beta, lamb, h_kk, h_kv, x, do, dx, y, da_rows, residual, r, cu_seqlens, chunk_indices,
    T, n_chunks, size, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    BS: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
    RESIDENT: tl.constexpr, REFINE: tl.constexpr, PRECISION: tl.constexpr, FINE: tl.constexpr, IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """dx_t = G_t do_t and the solve for y_t for the rows of a tile; and what the decay of each row receives,

    x_t.(G_t do_t) - x_t.(H_t y_t) = x_t.(lamb * y_t + r_t) ,    r_t the residual of the solve.
    """
    i_r, i_s, i_h, first, T = locate(
        tl.program_id(0), cu_seqlens, chunk_indices, T, n_chunks, H, BT, BT // BR, IS_VARLEN
    )
    o_t = i_r * BR + tl.arange(0, BR)
    o_k = tl.arange(0, BK)
    i_row = first * H + i_h
    b_dx = attend(do + i_row * V, H * V, v + i_row * V, H * V, k + i_row * K, H * K, h_kv + (i_s * H + i_h) * K * V, 1, V,
                  g + i_row, beta + i_row, o_t, o_k, T, K, 0, H, V, BT, BR, BK, BS, BD, FINE, False)  # fmt: skip
    tl.store(dx + i_row * K + o_t[:, None] * (H * K) + o_k[None, :], b_dx, mask=(o_t < T)[:, None] & (o_k < K)[None, :])
    tl.debug_barrier()
    i_zero = solve(
        dx, y, r, k, h_kk + (i_s * H + i_h) * K * K, g, beta, lamb + i_h * K, None, residual, i_row, o_t, T, max_steps, tolerance,
        H, K, BT, BR, BK, BS, BD, RESIDENT, REFINE, PRECISION, FINE,
    )  # fmt: skip

    i_row += i_zero
    o_t += i_zero
    m_t = o_t < T
    b_da = tl.zeros([BR], dtype=tl.float32)
    tl.debug_barrier()
    for i_k in range(i_zero, K, BE):
        o_e = i_k + tl.arange(0, BE)
        m_e = o_e < K
        o_te = i_row * K + o_t[:, None] * (H * K) + o_e[None, :]
        m_te = m_t[:, None] & m_e[None, :]
        b_x = tl.load(x + o_te, mask=m_te, other=0.0)
        b_y = tl.load(y + o_te, mask=m_te, other=0.0)
        b_lamb = tl.load(lamb + i_h * K + o_e, mask=m_e, other=0.0).to(tl.float32)
        b_da += tl.sum(b_x * (b_lamb[None, :] * b_y + tl.load(r + o_te, mask=m_te, other=0.0)), axis=1)
    tl.store(da_rows + i_row + o_t * H, b_da, mask=m_t)
