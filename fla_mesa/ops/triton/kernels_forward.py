# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false, reportAssignmentType=false
# (device code: types mean something else to Triton)
"""Forward kernel: the solve of a tile and, while it is in the cache, the output o_t = G_t'x_t."""

import triton
import triton.language as tl
from fla.utils import autotune_cache_kwargs

from fla_mesa.ops.triton.kernels_solve import list_left, rows_left, solve_tile
from fla_mesa.ops.triton.kernels_tile import attend, locate
from fla_mesa.ops.triton.plan import SOLVE_CONFIGS, solve_configs


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
