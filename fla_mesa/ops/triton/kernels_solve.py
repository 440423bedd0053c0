# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false, reportAssignmentType=false
# (device code: types mean something else to Triton)
"""The solve, as Triton device functions: conjugate gradients for a tile of positions, one linear system per row.

Names: `b_` a block in registers, `p_` pointers, `i_` an index, `o_` offsets, `m_` a mask. Sizes: BT positions a chunk, BR rows
(positions) a tile, BK >= K a power of two, BS and BD the blocks in which keys and the contracted dimension are read.

With a_t the base-2 logarithm of the decay since the start of the chunk and H0 the state before the chunk, row t solves

    (H_t + diag(lamb)) x_t = b_t ,    H_t p = exp2(a_t) H0 p + sum_{s<=t} exp2(a_t - a_s) beta_s k_s (k_s'p)

How this differs from the textbook's conjugate gradients:

- Each right-hand side is divided by its largest entry first and the solution multiplied back, so that no step depends on the
  scale of b. No constant is added to a denominator.
- Norms are weighted by 1 / lamb, and lamb preconditions: the iteration is that of diag(lamb)^-1/2 H diag(lamb)^-1/2 + 1, whose
  eigenvalues are at least 1, so that the residual bounds the error.
- A row stops on its own when ||r|| <= tolerance ||b|| and is frozen there; the tile ends with its last row. A row whose
  curvature p'Hp is not positive is frozen where it stands; one that meets a NaN becomes NaN and stops.
- Products run in a precision that the caller chooses. Where that is below float32, the residual is computed anew in a higher
  one and the iteration restarted until that residual, too, is small enough.
- An error in H p moves x by as much as p is long, and p shrinks with the residual: once that is within RELAX times the
  tolerance, products of plain bfloat16 do (inexact Krylov methods: van den Eshof and Sleijpen 2004, Simoncini and Szyld 2003),
  as long as H rounded to 8 bits is still positive definite with lamb: see MOST_ROUNDED. What they nevertheless leave, the new
  residual shows, and the restart, precise throughout, mends.
"""

import triton
import triton.language as tl
from fla.ops.utils.op import exp2

# Rounded to bfloat16, S = diag(lamb)^-1/2 H diag(lamb)^-1/2 is off by at most 2^-9 trace(S) in the Frobenius norm, and S + 1 has no
# eigenvalue below 1: positive definite for a trace below 512. Half of that.
MOST_ROUNDED = tl.constexpr(256.0)
AIM = tl.constexpr(0.9)  # of the tolerance, before the residual is computed anew


@triton.jit
def scrub(b_a):
    """A block without its infinities and NaN: 0 * NaN must not reach rows that come before them."""
    return tl.where(tl.abs(b_a.to(tl.float32)) < float("inf"), b_a, 0.0).to(b_a.dtype)


@triton.jit
def dot(b_a, b_b, b_acc, PRECISION: tl.constexpr):
    """acc + a b. Two operands of the same 16-bit type multiply exactly; anything else as float32 in PRECISION."""
    if b_a.dtype == b_b.dtype and b_a.dtype != tl.float32:
        return tl.dot(b_a, b_b, b_acc)
    elif PRECISION == "bf16x3" or PRECISION == "bf16":
        b_high, b_low = split(b_b, PRECISION)
        m_all = tl.full([b_a.shape[0]], True, tl.int1)
        return dot_split(b_a, b_high, b_low, b_acc, m_all, PRECISION, b_b.dtype != tl.bfloat16)
    elif PRECISION == "tf32x3" and b_a.dtype == tl.float32 and b_b.dtype == tl.bfloat16:
        # Three parts of 8 bits hold all of a float32, and the other operand is one: better, and half the cost.
        b_high, b_rest = split_once(b_a)
        b_middle, b_rest = split_once(b_rest)
        b_acc = tl.dot(b_rest.to(tl.bfloat16), b_b, b_acc)
        b_acc = tl.dot(b_middle, b_b, b_acc)
        return tl.dot(b_high, b_b, b_acc)
    elif PRECISION == "tf32x3" and b_a.dtype == tl.bfloat16 and b_b.dtype == tl.float32:
        b_high, b_rest = split_once(b_b)
        b_middle, b_rest = split_once(b_rest)
        b_acc = tl.dot(b_a, b_rest.to(tl.bfloat16), b_acc)
        b_acc = tl.dot(b_a, b_middle, b_acc)
        return tl.dot(b_a, b_high, b_acc)
    else:
        return tl.dot(b_a.to(tl.float32), b_b.to(tl.float32), b_acc, input_precision=PRECISION)


@triton.jit
def split_once(b_a):
    """The bfloat16 next to a block, and what it leaves in float32."""
    b_high = b_a.to(tl.bfloat16)
    return b_high, b_a.to(tl.float32) - b_high.to(tl.float32)


@triton.jit
def split(b_b, PRECISION: tl.constexpr):
    """A right operand, which may stay in shared memory for several products, as (high, low) parts where PRECISION splits it."""
    if PRECISION == "bf16x3" or PRECISION == "bf16":
        b_high, b_low = split_once(b_b)
        return b_high, b_low.to(tl.bfloat16)
    else:
        return b_b.to(tl.float32), b_b.to(tl.float32)


@triton.jit
def dot_split(b_a, b_high, b_low, b_acc, m_precise, PRECISION: tl.constexpr, LOW: tl.constexpr):
    """acc + a (high + low); without LOW the low part is known to be zero. Of a bfloat16 `a`, so is that one's.

    Rows outside of m_precise go without low parts: what PRECISION "bf16" would give them, to the bit.
    """
    if PRECISION == "bf16x3":
        b_a_high, b_a_low = split_once(b_a)
        if b_a.dtype != tl.bfloat16:
            b_acc = tl.dot(tl.where(m_precise[:, None], b_a_low, 0.0).to(tl.bfloat16), b_high, b_acc)
        if LOW:
            b_acc = tl.dot(tl.where(m_precise[:, None], b_a_high, 0.0).to(tl.bfloat16), b_low, b_acc)
        return tl.dot(b_a_high, b_high, b_acc)
    elif PRECISION == "bf16":
        return tl.dot(b_a.to(tl.bfloat16), b_high, b_acc)
    else:
        return tl.dot(b_a.to(tl.float32), b_high, b_acc, input_precision=PRECISION)


@triton.jit
def apply_resident(b_p, b_k_high, b_k_low, b_m, b_decay, b_h_high, b_h_low, b_lamb, m_precise, PRECISION: tl.constexpr,
                   K_LOW: tl.constexpr):  # fmt: skip
    """(H_t + diag(lamb)) p_t for the rows of a tile [BR, BK], with H0, the chunk's keys and their weights at hand."""
    b_s = tl.zeros([b_m.shape[0], b_m.shape[1]], dtype=tl.float32)
    b_s = dot_split(b_p, tl.trans(b_k_high), tl.trans(b_k_low), b_s, m_precise, PRECISION, K_LOW)
    b_hp = dot_split(b_s * b_m, b_k_high, b_k_low, b_lamb[None, :] * b_p, m_precise, PRECISION, K_LOW)
    return dot_split(b_p * b_decay, b_h_high, b_h_low, b_hp, m_precise, PRECISION, True)


@triton.jit
def locate(cu_seqlens, chunk_indices, T, n_chunks, H: tl.constexpr, BT: tl.constexpr, N_SUB: tl.constexpr,
           IS_VARLEN: tl.constexpr):  # fmt: skip
    """Program -> (tile within its chunk, index of the chunk's stored state, head, first position of the chunk, its length).

    The grid is one-dimensional, [batch * head, chunk, tile] with the tile fastest: neighbours share a state in the cache.
    Everything that follows counts positions from the start of the chunk, in 32 bits.
    """
    i_p = tl.program_id(0).to(tl.int64)
    i_r = (i_p % N_SUB).to(tl.int32)
    i_c = (i_p // N_SUB) % n_chunks
    i_bh = i_p // (N_SUB * n_chunks)
    i_b, i_h = i_bh // H, i_bh % H
    if IS_VARLEN:
        i_n = tl.load(chunk_indices + i_c * 2).to(tl.int64)
        i_t = tl.load(chunk_indices + i_c * 2 + 1).to(tl.int64)
        bos = tl.load(cu_seqlens + i_n).to(tl.int64)
        eos = tl.load(cu_seqlens + i_n + 1).to(tl.int64)
        i_s = i_c
    else:
        i_t = i_c
        bos = i_b * T
        eos = bos + T
        i_s = i_b * n_chunks + i_c
    first = bos + i_t * BT
    return i_r, i_s, i_h, first, tl.minimum(eos - first, BT).to(tl.int32)


@triton.jit
def attend(
    a, lda, b, ldb, c, ldc, w, w_d, w_n,  # pointers of this chunk and head, and their strides
    g, beta, o_t, o_n, T, N, i_zero,
    H: tl.constexpr, D: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr, BS: tl.constexpr,
    BD: tl.constexpr, PRECISION: tl.constexpr, MARK: tl.constexpr,
):  # fmt: skip
    """exp2(a_t) W'a_t + sum_{s<=t} M_ts (a_t'b_s) c_s  [BR, BN]: reads everything block by block from memory.

    One linear attention for the rows o_t of a chunk of T positions and the columns o_n: W [D, N] is the state before the
    chunk, b [., D] what is compared with a [., D], c [., N] what is summed. With MARK a NaN or infinity in c makes its own
    column NaN from its row on; otherwise the caller has made beta NaN there.
    """
    m_t = o_t < T
    m_n = o_n < N
    b_gt = tl.load(g + o_t * H, mask=m_t, other=0.0).to(tl.float32)
    b_acc = tl.zeros([BR, BN], dtype=tl.float32)
    for i_d in range(i_zero, D, BD):
        o_d = i_d + tl.arange(0, BD)
        m_d = o_d < D
        b_a = tl.load(a + o_t[:, None] * lda + o_d[None, :], mask=m_t[:, None] & m_d[None, :], other=0.0)
        b_w = tl.load(w + o_d[:, None] * w_d + o_n[None, :] * w_n, mask=m_d[:, None] & m_n[None, :], other=0.0)
        b_acc = dot(b_a, b_w, b_acc, PRECISION)
    b_acc *= exp2(b_gt)[:, None]
    # No key after the tile's last row counts: half of the work in the first tile of two.
    for i_s in range(i_zero, tl.minimum(tl.max(o_t) + 1, T), BS):
        o_s = i_s + tl.arange(0, BS)
        m_s = o_s < T
        b_s = tl.zeros([BR, BS], dtype=tl.float32)
        b_c = tl.load(c + o_s[:, None] * ldc + o_n[None, :], mask=m_s[:, None] & m_n[None, :], other=0.0)
        if MARK:
            m_finite = tl.abs(b_c.to(tl.float32)) < float("inf")
            if tl.sum(tl.where(m_finite, 0, 1)) > 0:
                b_touched = tl.where(o_t[:, None] >= o_s[None, :], 1.0, 0.0).to(tl.float16)
                b_touched = tl.dot(b_touched, tl.where(m_finite, 0.0, 1.0).to(tl.float16))
                b_acc += tl.where(b_touched > 0.0, float("nan"), 0.0)
        b_c = scrub(b_c)
        for i_d in range(i_zero, D, BD):
            o_d = i_d + tl.arange(0, BD)
            m_d = o_d < D
            b_a = tl.load(a + o_t[:, None] * lda + o_d[None, :], mask=m_t[:, None] & m_d[None, :], other=0.0)
            b_b = tl.load(b + o_s[:, None] * ldb + o_d[None, :], mask=m_s[:, None] & m_d[None, :], other=0.0)
            b_s = dot(b_a, tl.trans(scrub(b_b)), b_s, PRECISION)
        b_m = decay_mask(g, beta, b_gt, o_t, o_s, T, H)
        b_acc = dot(b_s * b_m, b_c, b_acc, PRECISION)
    return b_acc


@triton.jit
def decay_mask(g, beta, b_gt, o_t, o_s, T, H: tl.constexpr):
    """M_ts = exp2(a_t - a_s) beta_s for s <= t, else 0  [BR, BS]."""
    m_s = o_s < T
    b_gs = tl.load(g + o_s * H, mask=m_s, other=0.0).to(tl.float32)
    b_beta = tl.load(beta + o_s * H, mask=m_s, other=0.0).to(tl.float32)
    m_causal = (o_t[:, None] >= o_s[None, :]) & (o_t < T)[:, None] & m_s[None, :]
    return tl.where(m_causal, exp2(tl.minimum(b_gt[:, None] - b_gs[None, :], 0.0)) * b_beta[None, :], 0.0)


@triton.jit
def cg_scale(b_b, b_weight):
    """The right-hand sides [BR, BK] with largest entry 1, what to multiply the solutions by, and the squared norms."""
    b_scale = tl.max(tl.abs(b_b), axis=1)
    b_scale = tl.where(b_scale > 0.0, b_scale, 1.0)
    b_b = b_b / b_scale[:, None]
    return b_b, b_scale, tl.sum(b_b * b_b * b_weight[None, :], axis=1)


@triton.jit
def cg_step(b_x, b_r, b_p, b_hp, b_rr, b_active, b_steps, b_enough, b_weight):
    """One step of every active row, given H p. Rows are [., BK]; the rest is one number a row.

    b_weight is 1 / lamb [BK]. b_rr is ||r||^2 and becomes NaN in a row that meets one; b_enough the value of it at which a row is done.
    """
    b_php = tl.sum(b_p * b_hp, axis=1)
    m_step = b_active & (b_php > 0.0)
    b_alpha = tl.where(m_step, b_rr / b_php, 0.0)
    b_x += b_alpha[:, None] * b_p
    b_r -= b_alpha[:, None] * b_hp
    b_rr_new = tl.where(
        m_step, tl.sum(b_r * b_r * b_weight[None, :], axis=1), tl.where(b_active, b_rr + (b_php - b_php), b_rr)
    )
    b_steps += b_active.to(tl.int32)
    b_active = m_step & (b_rr_new > b_enough)
    b_p = tl.where(b_active[:, None], b_r * b_weight[None, :] + (b_rr_new / b_rr)[:, None] * b_p, 0.0)
    return b_x, b_r, b_p, b_rr_new, b_active, b_steps


@triton.jit
def solve_tile(
    b, x, k, h, g, beta, lamb, scratch,  # pointers of this chunk and head; b and x [., H * K] by rows, h [K, K]
    o_t, T, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BS: tl.constexpr,
    BD: tl.constexpr, RESIDENT: tl.constexpr, REFINE: tl.constexpr, RELAX: tl.constexpr, PRECISION: tl.constexpr,
    FINE: tl.constexpr,
):  # fmt: skip
    """Solve (H_t + diag(lamb)) x_t = b_t for the rows o_t and store x (float32).

    RESIDENT keeps H0 and the chunk's keys in shared memory through the iteration, in PRECISION; otherwise they are read
    block by block each time and p travels through `scratch`. REFINE computes the residual anew in FINE and restarts the rows
    in which it is too large. RELAX says from which multiple of the tolerance on products may be of plain bfloat16; 0 for never,
    and never without RESIDENT.

    What is needed only before and after the iteration (b, its scale and norm, x during the fine residual) is read again
    rather than kept, and addresses after it are built on `i_zero`, which is 0 but which the compiler cannot know before the
    iteration ends: kept or hoisted, they would spill the registers of x, r and p.

    Returns the solution, the residual b - (H_t + diag(lamb)) x, both [BR, BK], the steps and the relative residual [BR],
    and `i_zero`.
    """
    o_k = tl.arange(0, BK)
    m_k = o_k < K
    o_tk = o_t[:, None] * (H * K) + o_k[None, :]
    m_tk = (o_t < T)[:, None] & m_k[None, :]
    b_lamb = tl.load(lamb + o_k, mask=m_k, other=1.0).to(tl.float32)
    b_weight = 1.0 / b_lamb

    b_r, _, b_rr = cg_scale(tl.load(b + o_tk, mask=m_tk, other=0.0).to(tl.float32), b_weight)
    b_x = tl.zeros([BR, BK], dtype=tl.float32)
    b_rr_before = b_rr
    # A row that ends just below the tolerance would often be found just above by the new residual, and its whole tile would go on.
    AIM_SQUARED: tl.constexpr = AIM * AIM if REFINE else 1.0
    b_target = b_rr * (tolerance * tolerance * AIM_SQUARED)
    b_active = b_rr > b_target
    b_steps = tl.zeros([BR], dtype=tl.int32)
    b_p = tl.where(b_active[:, None], b_r * b_weight[None, :], 0.0)

    if RESIDENT:
        o_s = tl.arange(0, BT)
        b_gt = tl.load(g + o_t * H, mask=o_t < T, other=0.0).to(tl.float32)
        b_decay = exp2(b_gt)[:, None]
        b_h = tl.load(h + o_k[:, None] * K + o_k[None, :], mask=m_k[:, None] & m_k[None, :], other=0.0)
        b_h_high, b_h_low = split(b_h, PRECISION)
        b_k = tl.load(k + o_s[:, None] * (H * K) + o_k[None, :], mask=(o_s < T)[:, None] & m_k[None, :], other=0.0)
        K_LOW: tl.constexpr = b_k.dtype != tl.bfloat16
        b_k = scrub(b_k)
        b_k_high, b_k_low = split(b_k, PRECISION)
        b_m = decay_mask(g, beta, b_gt, o_t, o_s, T, H)

    # Each row changes over on its own, so that no row depends on what others need; the products, when the last one has.
    m_relaxes = tl.full([BR], False, tl.int1)
    if RESIDENT and RELAX > 0:
        # trace(diag(lamb)^-1 H_t) of each row
        b_diagonal = tl.load(h + o_k * (K + 1), mask=m_k, other=0.0)
        b_squares = tl.sum(b_k.to(tl.float32) * b_k.to(tl.float32) * b_weight[None, :], axis=1)
        b_trace = exp2(b_gt) * tl.sum(b_diagonal * b_weight) + tl.sum(b_m * b_squares[None, :], axis=1)
        m_relaxes = b_trace <= MOST_ROUNDED
    i_step = 0
    i_zero = 0
    n_active = tl.sum(b_active.to(tl.int32))
    m_precise = b_active & ~(m_relaxes & (b_rr <= b_target * (RELAX * RELAX / AIM_SQUARED)))
    n_precise = tl.sum(m_precise.to(tl.int32))
    n_left = n_active
    while n_left > 0:
        while (n_precise > 0) & (i_step < max_steps):
            if RESIDENT:
                b_hp = apply_resident(b_p, b_k_high, b_k_low, b_m, b_decay, b_h_high, b_h_low, b_lamb, m_precise,
                                      PRECISION, K_LOW)  # fmt: skip
            else:
                tl.store(scratch + o_tk, b_p, mask=m_tk)
                tl.debug_barrier()
                b_hp = attend(scratch, H * K, k, H * K, k, H * K, h, K, 1, g, beta, o_t, o_k, T, K, 0,
                              H, K, BT, BR, BK, BS, BD, PRECISION, False) + b_lamb[None, :] * b_p  # fmt: skip
                tl.debug_barrier()
            b_x, b_r, b_p, b_rr, b_active, b_steps = cg_step(
                b_x, b_r, b_p, b_hp, b_rr, b_active, b_steps, b_target, b_weight
            )
            i_step += 1
            n_active = tl.sum(b_active.to(tl.int32))
            m_precise = m_precise & b_active & ~(m_relaxes & (b_rr <= b_target * (RELAX * RELAX / AIM_SQUARED)))
            n_precise = tl.sum(m_precise.to(tl.int32))
        if RESIDENT and RELAX > 0:
            while (n_active > 0) & (i_step < max_steps):
                b_hp = apply_resident(b_p, b_k_high, b_k_low, b_m, b_decay, b_h_high, b_h_low, b_lamb, m_precise,
                                      "bf16", K_LOW)  # fmt: skip
                b_x, b_r, b_p, b_rr, b_active, b_steps = cg_step(
                    b_x, b_r, b_p, b_hp, b_rr, b_active, b_steps, b_target, b_weight
                )
                i_step += 1
                n_active = tl.sum(b_active.to(tl.int32))
        i_zero = tl.minimum(n_active, 0)
        n_left = 0
        if REFINE:
            o_tk = (o_t + i_zero)[:, None] * (H * K) + (o_k + i_zero)[None, :]
            m_tk = (o_t + i_zero < T)[:, None] & (o_k + i_zero < K)[None, :]
            tl.store(x + o_tk, b_x, mask=m_tk)
            tl.debug_barrier()
            b_hx = attend(x, H * K, k, H * K, k, H * K, h, K, 1, g, beta, o_t + i_zero, o_k + i_zero, T, K, i_zero,
                          H, K, BT, BR, BK, BS, BD, FINE, False)  # fmt: skip
            b_x = tl.load(x + o_tk, mask=m_tk, other=0.0)
            b_lamb_again = tl.load(lamb + o_k + i_zero, mask=o_k + i_zero < K, other=1.0).to(tl.float32)
            b_r, _, _ = cg_scale(tl.load(b + o_tk, mask=m_tk, other=0.0).to(tl.float32), b_lamb_again)
            b_r -= b_hx + b_lamb_again[None, :] * b_x
            tl.debug_barrier()
            b_rr = tl.sum(b_r * b_r / b_lamb_again[None, :], axis=1) + (b_rr - b_rr)
            # A restart that no longer halves the residual has met the rounding errors of FINE: stop there.
            b_active = (b_rr > b_target / AIM_SQUARED) & (b_rr < 0.25 * b_rr_before)
            b_rr_before = b_rr
            b_p = tl.where(b_active[:, None], b_r / b_lamb_again[None, :], 0.0)
            n_active = tl.sum(b_active.to(tl.int32))
            m_precise = b_active
            n_precise = n_active
            m_relaxes = tl.full([BR], False, tl.int1)
            n_left = tl.where(i_step < max_steps, n_active, 0)

    o_tk = (o_t + i_zero)[:, None] * (H * K) + (o_k + i_zero)[None, :]
    m_tk = (o_t + i_zero < T)[:, None] & (o_k + i_zero < K)[None, :]
    b_weight = 1.0 / tl.load(lamb + o_k + i_zero, mask=o_k + i_zero < K, other=1.0).to(tl.float32)
    _, b_scale, b_bb = cg_scale(tl.load(b + o_tk, mask=m_tk, other=0.0).to(tl.float32), b_weight)
    b_nan = (b_rr - b_rr) + (b_bb - b_bb)
    b_x = b_x * b_scale[:, None] + b_nan[:, None]
    tl.store(x + o_tk, b_x, mask=m_tk)
    b_relative = tl.where(b_bb > 0.0, tl.sqrt(b_rr / b_bb), 0.0) + b_nan
    return b_x, b_r * b_scale[:, None], b_steps, b_relative, i_zero
