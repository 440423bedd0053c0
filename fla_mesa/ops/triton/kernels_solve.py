# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false, reportAssignmentType=false
# (device code: types mean something else to Triton)
"""The solve, forward with the output and backward with what feeds it: one linear system per row.

With a_t the base-2 logarithm of the decay since the start of the chunk and H0 the state before the chunk, row t solves

    (H_t + diag(lamb)) x_t = b_t ,    H_t p = exp2(a_t) H0 p + sum_{s<=t} exp2(a_t - a_s) beta_s k_s (k_s'p)

It is launched in stages: rounds of float16 first (`kernels_rounds`), where the plan has them, and then the float32 iteration
(`kernels_precise`) for the rows that these have not brought within the tolerance, of which a stage leaves a list to the next.

Each kernel has all of its parameters twice, its own and those of the function for one tile. A loop over tiles around the body would do with
one list, but costs registers also where it has a single tile (docs/log.md, 2026-11-27).
"""

import triton
import triton.language as tl
from fla.utils import autotune_cache_kwargs

from fla_mesa.ops.triton.kernels_precise import solve_precise
from fla_mesa.ops.triton.kernels_rounds import solve_rounds
from fla_mesa.ops.triton.kernels_tile import attend, locate
from fla_mesa.ops.triton.plan import SOLVE_CONFIGS, solve_configs


@triton.jit
def rows_left(o_t, before, T, tolerance, H: tl.constexpr, BT: tl.constexpr):
    """The rows of a tile that the stage before left with a residual above the tolerance or NaN; the others are moved past the end of
    the chunk, where nothing is read or written. (What that stage left, not what is there now: autotuning runs a kernel many times.)
    """
    b_residual = tl.load(before + o_t * H, mask=o_t < T, other=0.0)
    return tl.where(b_residual <= tolerance, BT, o_t)


@triton.jit
def list_left(left, i_p, m_left, ROWS: tl.constexpr, NEXT: tl.constexpr):
    """Add to the list those tiles of the next stage, of NEXT rows, in which rows m_left [ROWS] of tile i_p are left.

    `left` holds their number, then theirs in any order: the tiles do not depend on each other.
    """
    o_r = tl.arange(0, ROWS)
    for i_n in tl.static_range(ROWS // NEXT):
        if tl.sum((m_left & (o_r // NEXT == i_n)).to(tl.int32)) > 0:
            tl.store(left + 1 + tl.atomic_add(left, 1), i_p * (ROWS // NEXT) + i_n)


@triton.jit
def solve_tile(
    b, x, r, k, h, g, beta, lamb,  # b, x, r and k [., H * K] by rows; h [K, K] and lamb, of this chunk and head
    i_row, o_t, T, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BS: tl.constexpr,
    BD: tl.constexpr, RESIDENT: tl.constexpr, REFINE: tl.constexpr, PRECISION: tl.constexpr,
    FINE: tl.constexpr,
):  # fmt: skip
    """Solve (H_t + diag(lamb)) x_t = b_t for the rows o_t; store x and, where r is given, the residual b - (H_t + diag(lamb)) x.

    Returns the steps and the relative residual [BR], in the norm weighted by 1 / lamb, and `i_zero`: 0, but the compiler cannot know that
    before the iteration ends. Addresses of what follows, built on it, are not computed early and kept, which would spill the registers of
    the iteration.
    """
    if PRECISION == "fp16" or PRECISION == "fp16 once":
        return solve_rounds(b, x, r, k, h, g, beta, lamb, i_row, o_t, T, max_steps, tolerance, H, K, BT, BR, BK,
                            PRECISION == "fp16 once")  # fmt: skip
    else:
        # Plain ifs, because a pointer that may be None has no address to add to.
        if r is not None:
            r += i_row * K
        return solve_precise(b + i_row * K, x + i_row * K, r, k + i_row * K, h, g + i_row, beta + i_row, lamb,
                             o_t, T, max_steps, tolerance,
                             H, K, BT, BR, BK, BS, BD, RESIDENT, REFINE, PRECISION, FINE)  # fmt: skip


@triton.jit
def solve_output_tile(
    i_p,
    q, k, v, g, beta, lamb, h_kk, h_kv, x, o, iterations, residual, r, before, left, cu_seqlens, chunk_indices,
    T, n_chunks, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
    RESIDENT: tl.constexpr, REFINE: tl.constexpr, PRECISION: tl.constexpr, FINE: tl.constexpr, NEXT: tl.constexpr,
    AGAIN: tl.constexpr, MERGE: tl.constexpr, IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """All of a tile, given its number."""
    ROWS: tl.constexpr = BR * MERGE
    i_r, i_s, i_h, first, T = locate(i_p, cu_seqlens, chunk_indices, T, n_chunks, H, BT, BT // ROWS, IS_VARLEN)
    o_t = i_r * ROWS + tl.arange(0, ROWS)
    i_row = first * H + i_h
    if AGAIN:
        o_t = rows_left(o_t, before + i_row, T, tolerance, H, BT)
    b_steps, b_relative, i_zero = solve_tile(
        q, x, r, k, h_kk + (i_s * H + i_h) * K * K, g, beta, lamb + i_h * K, i_row, o_t, T, max_steps, tolerance,
        H, K, BT, ROWS, BK, BS, BD, RESIDENT, REFINE, PRECISION, FINE,
    )  # fmt: skip
    i_row += i_zero
    o_t += i_zero
    m_t = o_t < T
    if NEXT > 0:
        list_left(left, i_p, m_t & ((b_relative <= tolerance) == 0), ROWS, NEXT)
    tl.store(iterations + i_row + o_t * H, b_steps, mask=m_t)
    tl.store(residual + i_row + o_t * H, b_relative, mask=m_t)
    tl.debug_barrier()

    h_kv += ((i_s + i_zero) * H + i_h) * K * V
    # What an output of 16 bits does not show need not be computed.
    OUT: tl.constexpr = FINE if o.dtype.element_ty == tl.float32 else "bf16x3"
    for i_v in range(0, V, BV):
        o_v = i_v + tl.arange(0, BV)
        b_o = attend(x + i_row * K, H * K, k + i_row * K, H * K, v + i_row * V, H * V, h_kv, V, 1, g + i_row, beta + i_row,
                     o_t, o_v, T, V, i_zero, H, K, BT, ROWS, BV, BS, BD, OUT, True)  # fmt: skip
        p_o = o + i_row * V + o_t[:, None] * (H * V) + o_v[None, :]
        tl.store(p_o, b_o.to(o.dtype.element_ty), mask=m_t[:, None] & (o_v < V)[None, :])


@triton.heuristics({"IS_VARLEN": lambda args: args["cu_seqlens"] is not None})
@triton.autotune(
    configs=SOLVE_CONFIGS,
    key=["H", "K", "V", "BT", "BR", "RESIDENT", "REFINE", "PRECISION", "FINE", "AGAIN", "size"],
    prune_configs_by={"early_config_prune": solve_configs},
    reset_to_zero=["left"],
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["T", "n_chunks", "size", "max_steps"])
def solve_output_kernel(
    q, k, v, g, beta, lamb, h_kk, h_kv, x, o, iterations, residual, r, todo, before, left, cu_seqlens, chunk_indices,
    T, n_chunks, size, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
    RESIDENT: tl.constexpr, REFINE: tl.constexpr, PRECISION: tl.constexpr, FINE: tl.constexpr, NEXT: tl.constexpr,
    AGAIN: tl.constexpr, MERGE: tl.constexpr, IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """A tile a program; in a later stage (AGAIN) those listed in `todo`, by as many programs as the GPU runs at once."""
    if AGAIN:
        for i in range(tl.program_id(0), tl.load(todo), tl.num_programs(0)):
            solve_output_tile(
                tl.load(todo + 1 + i), q, k, v, g, beta, lamb, h_kk, h_kv, x, o, iterations, residual, r, before, left,
                cu_seqlens, chunk_indices, T, n_chunks, max_steps, tolerance, H, K, V, BT, BR, BK, BV, BS, BD,
                RESIDENT, REFINE, PRECISION, FINE, NEXT, AGAIN, MERGE, IS_VARLEN,
            )  # fmt: skip
    else:
        solve_output_tile(
            tl.program_id(0), q, k, v, g, beta, lamb, h_kk, h_kv, x, o, iterations, residual, r, before, left,
            cu_seqlens, chunk_indices, T, n_chunks, max_steps, tolerance, H, K, V, BT, BR, BK, BV, BS, BD,
            RESIDENT, REFINE, PRECISION, FINE, NEXT, AGAIN, MERGE, IS_VARLEN,
        )  # fmt: skip


@triton.jit
def solve_backward_tile(
    i_p,
    k, v, g, beta, lamb, h_kk, h_kv, x, do, dx, y, da_rows, dlamb, residual, r, before, left, cu_seqlens, chunk_indices,
    T, n_chunks, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    BS: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
    RESIDENT: tl.constexpr, REFINE: tl.constexpr, PRECISION: tl.constexpr, FINE: tl.constexpr, NEXT: tl.constexpr,
    AGAIN: tl.constexpr, MERGE: tl.constexpr, IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """dx_t = G_t do_t and the solve for y_t of one tile; its part of dlamb; and what the decay of each row receives,

    x_t.(G_t do_t) - x_t.(H_t y_t) = x_t.(lamb * y_t + r_t) ,    r_t the residual of the solve.
    """
    ROWS: tl.constexpr = BR * MERGE
    i_r, i_s, i_h, first, T = locate(i_p, cu_seqlens, chunk_indices, T, n_chunks, H, BT, BT // ROWS, IS_VARLEN)
    o_t = i_r * ROWS + tl.arange(0, ROWS)
    o_k = tl.arange(0, BK)
    i_row = first * H + i_h
    if AGAIN:
        o_t = rows_left(o_t, before + i_row, T, tolerance, H, BT)
    b_dx = attend(do + i_row * V, H * V, v + i_row * V, H * V, k + i_row * K, H * K, h_kv + (i_s * H + i_h) * K * V, 1, V,
                  g + i_row, beta + i_row, o_t, o_k, T, K, 0, H, V, BT, ROWS, BK, BS, BD, FINE, False)  # fmt: skip
    tl.store(dx + i_row * K + o_t[:, None] * (H * K) + o_k[None, :], b_dx, mask=(o_t < T)[:, None] & (o_k < K)[None, :])
    tl.debug_barrier()
    _, b_relative, i_zero = solve_tile(
        dx, y, r, k, h_kk + (i_s * H + i_h) * K * K, g, beta, lamb + i_h * K, i_row, o_t, T, max_steps, tolerance,
        H, K, BT, ROWS, BK, BS, BD, RESIDENT, REFINE, PRECISION, FINE,
    )  # fmt: skip

    i_row += i_zero
    o_t += i_zero
    m_t = o_t < T
    if NEXT > 0:
        list_left(left, i_p, m_t & ((b_relative <= tolerance) == 0), ROWS, NEXT)
    tl.store(residual + i_row + o_t * H, b_relative, mask=m_t)
    # Rows that a later stage solves again are summed there.
    m_done = (b_relative <= tolerance) if NEXT > 0 else m_t
    i_tile = i_s * (BT // BR) + i_r * MERGE
    b_da = tl.zeros([ROWS], dtype=tl.float32)
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
        b_dlamb = -tl.sum(tl.where(m_done[:, None], b_x * b_y, 0.0), axis=0)
        tl.store(dlamb + (i_tile * H + i_h) * K + o_e, b_dlamb, mask=m_e)
        # The places of the tiles merged into this one hold what autotuning wrote when it tried them apart.
        for i_m in tl.static_range(1, MERGE):
            tl.store(dlamb + ((i_tile + i_m) * H + i_h) * K + o_e, tl.zeros([BE], dtype=tl.float32), mask=m_e)
    tl.store(da_rows + i_row + o_t * H, b_da, mask=m_t)


@triton.heuristics({"IS_VARLEN": lambda args: args["cu_seqlens"] is not None})
@triton.autotune(
    configs=SOLVE_CONFIGS,
    key=["H", "K", "V", "BT", "BR", "RESIDENT", "REFINE", "PRECISION", "FINE", "AGAIN", "size"],
    prune_configs_by={"early_config_prune": solve_configs},
    reset_to_zero=["left"],
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["T", "n_chunks", "size", "max_steps"])
def solve_backward_kernel(
    k, v, g, beta, lamb, h_kk, h_kv, x, do, dx, y, da_rows, dlamb, residual, r, todo, before, left, cu_seqlens, chunk_indices,
    T, n_chunks, size, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    BS: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
    RESIDENT: tl.constexpr, REFINE: tl.constexpr, PRECISION: tl.constexpr, FINE: tl.constexpr, NEXT: tl.constexpr,
    AGAIN: tl.constexpr, MERGE: tl.constexpr, IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """As the forward kernel: a tile a program, or those listed in `todo`."""
    if AGAIN:
        for i in range(tl.program_id(0), tl.load(todo), tl.num_programs(0)):
            solve_backward_tile(
                tl.load(todo + 1 + i), k, v, g, beta, lamb, h_kk, h_kv, x, do, dx, y, da_rows, dlamb, residual, r, before, left,
                cu_seqlens, chunk_indices, T, n_chunks, max_steps, tolerance, H, K, V, BT, BR, BK, BS, BD, BE,
                RESIDENT, REFINE, PRECISION, FINE, NEXT, AGAIN, MERGE, IS_VARLEN,
            )  # fmt: skip
    else:
        solve_backward_tile(
            tl.program_id(0), k, v, g, beta, lamb, h_kk, h_kv, x, do, dx, y, da_rows, dlamb, residual, r, before, left,
            cu_seqlens, chunk_indices, T, n_chunks, max_steps, tolerance, H, K, V, BT, BR, BK, BS, BD, BE,
            RESIDENT, REFINE, PRECISION, FINE, NEXT, AGAIN, MERGE, IS_VARLEN,
        )  # fmt: skip
