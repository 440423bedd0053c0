# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false, reportAssignmentType=false
# (device code: types mean something else to Triton)
"""The solve in float32: of float32 inputs and of heads that `kernels_solve` has no room for.

How this differs from the textbook's conjugate gradients:

- The start is b / diag(H + diag(lamb)), as in algorithm 1 of arXiv 2506.05233.
- Each right-hand side is divided by a power of two near its largest entry first and the solution multiplied back, so that no step depends on the
  scale of b. No constant is added to a denominator.
- Norms are weighted by 1 / lamb, and lamb preconditions: the iteration is that of diag(lamb)^-1/2 H diag(lamb)^-1/2 + 1, whose
  eigenvalues are at least 1, so that the residual bounds the error.
- A row stops on its own when ||r|| <= tolerance ||b|| and is frozen there; the tile ends with its last row. A row whose
  curvature p'Hp is not positive is frozen where it stands; one that meets a NaN becomes NaN and stops.
- Products of the iteration run in PRECISION. The residual is computed anew in FINE, of the start and at the end, and the iteration
  restarted until that one is small enough, too.
"""

import triton
import triton.language as tl
from fla.ops.utils.op import exp2
from fla.utils import autotune_cache_kwargs

from fla_mesa.ops.triton.kernels_tile import decay_mask, dot, dot_split, locate, poison, scale_rows, scrub, split
from fla_mesa.ops.triton.plan import SOLVE_CONFIGS, solve_configs

AIM = tl.constexpr(0.9)  # of the tolerance, before the residual is computed anew


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
            b_acc = poison(b_acc, b_c, o_t, o_s)
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
def diagonal(
    k, w, g, beta, o_t, o_k, T,  # pointers of this chunk and head
    H: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """diag(H_t) for the rows o_t  [BR, BK]: exp2(a_t) diag(W) + sum_{s<=t} M_ts k_s * k_s , W the state before the chunk."""
    m_k = o_k < K
    b_gt = tl.load(g + o_t * H, mask=o_t < T, other=0.0).to(tl.float32)
    b_acc = exp2(b_gt)[:, None] * tl.load(w + o_k * (K + 1), mask=m_k, other=0.0)[None, :]
    for i_s in range(0, tl.minimum(tl.max(o_t) + 1, T), BS):
        o_s = i_s + tl.arange(0, BS)
        b_k = tl.load(k + o_s[:, None] * (H * K) + o_k[None, :], mask=(o_s < T)[:, None] & m_k[None, :], other=0.0)
        b_k = scrub(b_k).to(tl.float32)
        b_acc = dot(decay_mask(g, beta, b_gt, o_t, o_s, T, H), b_k * b_k, b_acc, PRECISION)
    return b_acc


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
def solve(
    b, x, r, k, h, g, beta, lamb,  # pointers of this chunk and head; b, x and r [., H * K] by rows, h [K, K]
    o_t, T, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BS: tl.constexpr,
    BD: tl.constexpr, RESIDENT: tl.constexpr, PRECISION: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    """Solve (H_t + diag(lamb)) x_t = b_t for the rows o_t; store x and, where r is given, the residual b - (H_t + diag(lamb)) x.

    RESIDENT keeps H0 and the chunk's keys in shared memory through the iteration, in PRECISION; otherwise they are read block by block
    each time and p travels through the memory of r. Returns the steps and the relative residual [BR], in the norm weighted by 1 / lamb, and
    `i_zero`: 0, but the compiler cannot know that before the iteration ends.

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
    AIM_SQUARED: tl.constexpr = AIM * AIM
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
        # A restart that no longer halves the residual has met the rounding errors of FINE: stop there.
        b_active = (b_rr > b_target / AIM_SQUARED) & (b_rr < 0.25 * b_rr_before)
        b_rr_before = b_rr
        b_p = tl.where(b_active[:, None], b_r / b_lamb_again[None, :], 0.0)
        n_active = tl.sum(b_active.to(tl.int32))
        n_left = tl.where(i_step < max_steps, n_active, 0)

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


@triton.heuristics({"IS_VARLEN": lambda args: args["cu_seqlens"] is not None})
@triton.autotune(
    configs=SOLVE_CONFIGS,
    key=["H", "K", "V", "BT", "BR", "RESIDENT", "PRECISION", "FINE", "size"],
    prune_configs_by={"early_config_prune": solve_configs},
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["T", "n_chunks", "size", "max_steps"])
def precise_output_kernel(
    q, k, v, g, beta, lamb, h_kk, h_kv, x, o, iterations, residual, r, cu_seqlens, chunk_indices,
    T, n_chunks, size, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, RESIDENT: tl.constexpr, PRECISION: tl.constexpr, FINE: tl.constexpr,
    IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """x_t of a tile and, while it is in the cache, the output o_t = G_t'x_t."""
    i_r, i_s, i_h, first, T = locate(
        tl.program_id(0), cu_seqlens, chunk_indices, T, n_chunks, H, BT, BT // BR, IS_VARLEN
    )
    o_t = i_r * BR + tl.arange(0, BR)
    i_row = first * H + i_h
    if r is not None:  # a pointer that may be None has no address to add to
        r += i_row * K
    b_steps, b_relative, i_zero = solve(
        q + i_row * K, x + i_row * K, r, k + i_row * K, h_kk + (i_s * H + i_h) * K * K, g + i_row, beta + i_row, lamb + i_h * K,
        o_t, T, max_steps, tolerance, H, K, BT, BR, BK, BS, BD, RESIDENT, PRECISION, FINE,
    )  # fmt: skip
    i_row += i_zero
    o_t += i_zero
    m_t = o_t < T
    tl.store(iterations + i_row + o_t * H, b_steps, mask=m_t)
    tl.store(residual + i_row + o_t * H, b_relative, mask=m_t)
    tl.debug_barrier()

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
    key=["H", "K", "V", "BT", "BR", "RESIDENT", "PRECISION", "FINE", "size"],
    prune_configs_by={"early_config_prune": solve_configs},
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["T", "n_chunks", "size", "max_steps"])
def precise_backward_kernel(
    k, v, g, beta, lamb, h_kk, h_kv, x, do, dx, y, da_rows, dlamb, residual, r, cu_seqlens, chunk_indices,
    T, n_chunks, size, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, RESIDENT: tl.constexpr, PRECISION: tl.constexpr, FINE: tl.constexpr,
    IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """dx_t = G_t do_t and the solve for y_t of a tile; its part of dlamb and what the decays receive, as in `sums_kernel`."""
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
    _, b_relative, i_zero = solve(
        dx + i_row * K, y + i_row * K, r + i_row * K, k + i_row * K, h_kk + (i_s * H + i_h) * K * K, g + i_row, beta + i_row,
        lamb + i_h * K, o_t, T, max_steps, tolerance, H, K, BT, BR, BK, BS, BD, RESIDENT, PRECISION, FINE,
    )  # fmt: skip

    i_row += i_zero
    o_t += i_zero
    m_t = o_t < T
    tl.store(residual + i_row + o_t * H, b_relative, mask=m_t)
    b_da = tl.zeros([BR], dtype=tl.float32)
    dlamb += ((i_s * (BT // BR) + i_r) * H + i_h) * K
    tl.debug_barrier()
    for i_k in range(i_zero, K, BV):
        o_e = i_k + tl.arange(0, BV)
        m_e = o_e < K
        o_te = i_row * K + o_t[:, None] * (H * K) + o_e[None, :]
        m_te = m_t[:, None] & m_e[None, :]
        b_x = tl.load(x + o_te, mask=m_te, other=0.0)
        b_y = tl.load(y + o_te, mask=m_te, other=0.0)
        b_lamb = tl.load(lamb + i_h * K + o_e, mask=m_e, other=0.0).to(tl.float32)
        b_da += tl.sum(b_x * (b_lamb[None, :] * b_y + tl.load(r + o_te, mask=m_te, other=0.0)), axis=1)
        tl.store(dlamb + o_e, -tl.sum(b_x * b_y, axis=0), mask=m_e)
    tl.store(da_rows + i_row + o_t * H, b_da, mask=m_t)
