# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false, reportAssignmentType=false
# (device code: types mean something else to Triton)
"""The float32 iteration of the solve, as a Triton device function: for float32 inputs, and where state and keys do not fit shared memory.

How this differs from the textbook's conjugate gradients:

- The start is b / diag(H + diag(lamb)), as in algorithm 1 of arXiv 2506.05233.
- Each right-hand side is divided by its largest entry first and the solution multiplied back, so that no step depends on the
  scale of b. No constant is added to a denominator.
- Norms are weighted by 1 / lamb, and lamb preconditions: the iteration is that of diag(lamb)^-1/2 H diag(lamb)^-1/2 + 1, whose
  eigenvalues are at least 1, so that the residual bounds the error.
- A row stops on its own when ||r|| <= tolerance ||b|| and is frozen there; the tile ends with its last row. A row whose
  curvature p'Hp is not positive is frozen where it stands; one that meets a NaN becomes NaN and stops.
- Products run in a precision that the caller chooses. Where that is below float32, the residual is computed anew in a higher
  one and the iteration restarted until that residual, too, is small enough.
"""

import triton
import triton.language as tl
from fla.ops.utils.op import exp2

from fla_mesa.ops.triton.kernels_tile import attend, decay_mask, diagonal, dot_split, scale_rows, scrub, split

AIM = tl.constexpr(0.9)  # of the tolerance, before the residual is computed anew
# A restart that leaves more than this share of the residual has met the rounding errors of FINE: stop there.
LEAST = tl.constexpr(0.9)


@triton.jit
def apply_resident(b_p, b_k_high, b_k_low, b_m, b_decay, b_h_high, b_h_low, b_lamb, PRECISION: tl.constexpr,
                   K_LOW: tl.constexpr):  # fmt: skip
    """(H_t + diag(lamb)) p_t for the rows of a tile [BR, BK], with H0, the chunk's keys and their weights at hand."""
    b_s = tl.zeros([b_m.shape[0], b_m.shape[1]], dtype=tl.float32)
    b_s = dot_split(b_p, tl.trans(b_k_high), tl.trans(b_k_low), b_s, PRECISION, K_LOW)
    b_hp = dot_split(b_s * b_m, b_k_high, b_k_low, b_lamb[None, :] * b_p, PRECISION, K_LOW)
    return dot_split(b_p * b_decay, b_h_high, b_h_low, b_hp, PRECISION, True)


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
def solve_precise(
    b, x, r, k, h, g, beta, lamb,  # pointers of this chunk and head; b, x and r [., H * K] by rows, h [K, K]
    o_t, T, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BS: tl.constexpr,
    BD: tl.constexpr, RESIDENT: tl.constexpr, REFINE: tl.constexpr, PRECISION: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    """As `solve` of `kernels_solve`.

    RESIDENT keeps H0 and the chunk's keys in shared memory through the iteration, in PRECISION; otherwise they are read
    block by block each time and p travels through the memory of r. The residual is computed in FINE of the start and again at the end,
    when REFINE restarts the rows in which it is too large.

    What is needed only before and after the iteration (b, its scale and norm, x during the fine residual) is read again
    rather than kept, and addresses after it are built on `i_zero`: kept or hoisted, they would spill the registers of x, r and p.
    """
    o_k = tl.arange(0, BK)
    m_k = o_k < K
    o_tk = o_t[:, None] * (H * K) + o_k[None, :]
    m_tk = (o_t < T)[:, None] & m_k[None, :]
    b_lamb = tl.load(lamb + o_k, mask=m_k, other=1.0).to(tl.float32)
    b_weight = 1.0 / b_lamb

    b_r, _ = scale_rows(tl.load(b + o_tk, mask=m_tk, other=0.0).to(tl.float32))
    b_rr = tl.sum(b_r * b_r * b_weight[None, :], axis=1)
    b_x = b_r / (diagonal(k, h, g, beta, o_t, o_k, T, H, K, BT, BR, BK, BS, PRECISION) + b_lamb[None, :])
    b_rr_before = tl.full([BR], float("inf"), dtype=tl.float32)
    # A row that ends just below the tolerance would often be found just above by the new residual, and its whole tile would go on.
    AIM_SQUARED: tl.constexpr = AIM * AIM if REFINE else 1.0
    b_target = b_rr * (tolerance * tolerance * AIM_SQUARED)
    b_active = b_rr > b_target
    b_steps = tl.zeros([BR], dtype=tl.int32)
    b_p = tl.zeros([BR, BK], dtype=tl.float32)
    n_left = tl.sum(b_active.to(tl.int32))
    tl.debug_barrier()

    if RESIDENT:
        o_s = tl.arange(0, BT)
        b_gt = tl.load(g + o_t * H, mask=o_t < T, other=0.0).to(tl.float32)
        b_decay = exp2(b_gt)[:, None]
        b_h = tl.load(h + o_k[:, None] * K + o_k[None, :], mask=m_k[:, None] & m_k[None, :], other=0.0)
        b_h_high, b_h_low = split(b_h, PRECISION)
        tl.debug_barrier()
        b_k = tl.load(k + o_s[:, None] * (H * K) + o_k[None, :], mask=(o_s < T)[:, None] & m_k[None, :], other=0.0)
        K_LOW: tl.constexpr = b_k.dtype != tl.bfloat16
        b_k = scrub(b_k)
        b_k_high, b_k_low = split(b_k, PRECISION)
        b_m = decay_mask(g, beta, b_gt, o_t, o_s, T, H)

    i_step = 0
    i_zero = 0
    n_active = tl.minimum(n_left, 0)  # 0: the residual of the start comes before its first step
    while n_left > 0:
        while (n_active > 0) & (i_step < max_steps):
            if RESIDENT:
                b_hp = apply_resident(b_p, b_k_high, b_k_low, b_m, b_decay, b_h_high, b_h_low, b_lamb, PRECISION, K_LOW)
            else:
                tl.store(r + o_tk, b_p, mask=m_tk)
                tl.debug_barrier()
                b_hp = attend(r, H * K, k, H * K, k, H * K, h, K, 1, g, beta, o_t, o_k, T, K, 0,
                              H, K, BT, BR, BK, BS, BD, PRECISION, False) + b_lamb[None, :] * b_p  # fmt: skip
                tl.debug_barrier()
            b_x, b_r, b_p, b_rr, b_active, b_steps = cg_step(
                b_x, b_r, b_p, b_hp, b_rr, b_active, b_steps, b_target, b_weight
            )
            i_step += 1
            n_active = tl.sum(b_active.to(tl.int32))
        i_zero = tl.multiple_of(tl.minimum(n_active, 0), 128)
        o_tk = (o_t + i_zero)[:, None] * (H * K) + (o_k + i_zero)[None, :]
        m_tk = (o_t + i_zero < T)[:, None] & (o_k + i_zero < K)[None, :]
        tl.store(x + o_tk, b_x, mask=m_tk)
        tl.debug_barrier()
        b_hx = attend(x, H * K, k, H * K, k, H * K, h, K, 1, g, beta, o_t + i_zero, o_k + i_zero, T, K, i_zero,
                      H, K, BT, BR, BK, BS, BD, FINE, False)  # fmt: skip
        b_x = tl.load(x + o_tk, mask=m_tk, other=0.0)
        b_lamb_again = tl.load(lamb + o_k + i_zero, mask=o_k + i_zero < K, other=1.0).to(tl.float32)
        b_r, _ = scale_rows(tl.load(b + o_tk, mask=m_tk, other=0.0).to(tl.float32))
        b_r -= b_hx + b_lamb_again[None, :] * b_x
        tl.debug_barrier()
        b_rr = tl.sum(b_r * b_r / b_lamb_again[None, :], axis=1) + (b_rr - b_rr)
        b_active = (b_rr > b_target / AIM_SQUARED) & (b_rr < b_rr_before * (LEAST * LEAST))
        b_rr_before = b_rr
        b_p = tl.where(b_active[:, None], b_r / b_lamb_again[None, :], 0.0)
        n_active = tl.sum(b_active.to(tl.int32))
        n_left = tl.where(i_step < max_steps, n_active, 0)
        if not REFINE:
            n_left = tl.where(i_step == 0, n_left, 0)

    o_tk = (o_t + i_zero)[:, None] * (H * K) + (o_k + i_zero)[None, :]
    m_tk = (o_t + i_zero < T)[:, None] & (o_k + i_zero < K)[None, :]
    b_weight = 1.0 / tl.load(lamb + o_k + i_zero, mask=o_k + i_zero < K, other=1.0).to(tl.float32)
    b_start, b_scale = scale_rows(tl.load(b + o_tk, mask=m_tk, other=0.0).to(tl.float32))
    b_bb = tl.sum(b_start * b_start * b_weight[None, :], axis=1)
    b_nan = (b_rr - b_rr) + (b_bb - b_bb)
    b_x = b_x * b_scale + b_nan[:, None]
    tl.store(x + o_tk, b_x, mask=m_tk)
    b_relative = tl.where(b_bb > 0.0, tl.sqrt(b_rr / b_bb), 0.0) + b_nan
    if r is not None:
        tl.store(r + o_tk, b_r * b_scale, mask=m_tk)
    return b_steps, b_relative, i_zero
