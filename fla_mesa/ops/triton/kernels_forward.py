# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false
# (device code: types mean something else to Triton)
"""Forward kernel: the solve of a tile and, while it is in the cache, the output o_t = G_t'x_t."""

import triton
import triton.language as tl
from fla.utils import autotune_cache_kwargs

from fla_mesa.ops.triton.kernels_solve import attend, locate, solve_tile
from fla_mesa.ops.triton.plan import solve_configs


@triton.heuristics({"IS_VARLEN": lambda args: args["cu_seqlens"] is not None})
@triton.autotune(
    configs=[triton.Config({}, num_warps=w, num_stages=s) for s in (1, 2) for w in (8, 4)],
    key=["H", "K", "V", "BT", "BR", "RESIDENT", "REFINE", "RELAX", "PRECISION", "FINE"],
    prune_configs_by={"early_config_prune": solve_configs},
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["T", "n_chunks", "max_steps"])
def solve_output_kernel(
    q, k, v, g, beta, lamb, h_kk, h_kv, x, o, iterations, residual, scratch, cu_seqlens, chunk_indices,
    T, n_chunks, max_steps, tolerance,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
    RESIDENT: tl.constexpr, REFINE: tl.constexpr, RELAX: tl.constexpr, PRECISION: tl.constexpr, FINE: tl.constexpr,
    IS_VARLEN: tl.constexpr,
):  # fmt: skip
    i_r, i_s, i_h, first, T = locate(cu_seqlens, chunk_indices, T, n_chunks, H, BT, BT // BR, IS_VARLEN)
    o_t = i_r * BR + tl.arange(0, BR)
    m_t = o_t < T
    i_row = first * H + i_h
    q += i_row * K
    k += i_row * K
    v += i_row * V
    g += i_row
    beta += i_row
    x += i_row * K
    o += i_row * V
    h_kk += (i_s * H + i_h) * K * K
    h_kv += (i_s * H + i_h) * K * V
    if not RESIDENT:
        scratch += i_row * K

    _, _, b_steps, b_relative, i_zero = solve_tile(
        q, x, k, h_kk, g, beta, lamb + i_h * K, scratch, o_t, T, max_steps, tolerance,
        H, K, BT, BR, BK, BS, BD, RESIDENT, REFINE, RELAX, PRECISION, FINE,
    )  # fmt: skip
    o_t += i_zero
    m_t = o_t < T
    tl.store(iterations + i_row + o_t * H, b_steps, mask=m_t)
    tl.store(residual + i_row + o_t * H, b_relative, mask=m_t)
    tl.debug_barrier()

    for i_v in range(0, V, BV):
        o_v = i_v + tl.arange(0, BV)
        b_o = attend(x, H * K, k, H * K, v, H * V, h_kv, V, 1, g, beta, o_t, o_v, T, V, i_zero,
                     H, K, BT, BR, BV, BS, BD, FINE, True)  # fmt: skip
        p_o = o + o_t[:, None] * (H * V) + o_v[None, :]
        tl.store(p_o, b_o.to(o.dtype.element_ty), mask=m_t[:, None] & (o_v < V)[None, :])
