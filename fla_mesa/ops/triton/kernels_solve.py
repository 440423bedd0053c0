# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false
# (device code: types mean something else to Triton)
"""The solve of a tile of positions, as Triton device functions: one linear system per row.

With a_t the base-2 logarithm of the decay since the start of the chunk and H0 the state before the chunk, row t solves

    (H_t + diag(lamb)) x_t = b_t ,    H_t p = exp2(a_t) H0 p + sum_{s<=t} exp2(a_t - a_s) beta_s k_s (k_s'p)

It is launched in stages: rounds of float16 first (`kernels_rounds`), where the plan has them, and then the float32 iteration
(`kernels_precise`) for the rows that these have not brought within the tolerance, of which a stage leaves a list to the next.
"""

import triton
import triton.language as tl

from fla_mesa.ops.triton.kernels_precise import solve_precise
from fla_mesa.ops.triton.kernels_rounds import solve_rounds


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
