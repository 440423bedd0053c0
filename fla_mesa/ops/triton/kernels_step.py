# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false
# (device code: types mean something else to Triton)
"""The decoding step: both states brought forward by one position, the solve and the output, one program per sequence and head."""

import triton
import triton.language as tl
from fla.ops.utils.op import exp
from fla.utils import autotune_cache_kwargs

from fla_mesa.ops.triton.kernels_tile import scale_rows


@triton.jit
def apply_state(b_p, b_h, h, scratch, b_lamb, o_k, K: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
                RESIDENT: tl.constexpr):  # fmt: skip
    """(H + diag(lamb)) p [1, BK]; where H is not in registers, p travels through the memory of scratch."""
    if RESIDENT:
        b_hp = tl.sum(b_h * b_p, axis=1)[None, :]
    else:
        m_k = o_k < K
        tl.store(scratch + o_k[None, :], b_p, mask=m_k[None, :])
        tl.debug_barrier()
        b_hp = tl.zeros([1, BK], dtype=tl.float32)
        for i_d in range(0, K, BD):
            o_d = i_d + tl.arange(0, BD)
            b_hd = tl.load(h + o_d[:, None] * K + o_k[None, :], mask=(o_d < K)[:, None] & m_k[None, :], other=0.0)
            b_pd = tl.load(scratch + o_d, mask=o_d < K, other=0.0)
            b_hp += tl.sum(b_hd * b_pd[:, None], axis=0)[None, :]
        tl.debug_barrier()
    return b_hp + b_lamb[None, :] * b_p


@triton.autotune(
    configs=[triton.Config({}, num_warps=w, num_stages=1) for w in (8, 4)],
    key=["H", "K", "V", "RESIDENT", "size"],
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["max_steps", "size"])
def step_kernel(
    q, k, v, g, beta, lamb, h_kk, h_kv, h_kk_new, h_kv_new, o, iterations, residual, scratch, size, max_steps,
    tolerance, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr,
    RESIDENT: tl.constexpr,
):  # fmt: skip
    """All in float32 without tensor cores: reading and writing the states is what takes the time.

    RESIDENT keeps H in registers through the iteration; otherwise it is read from the cache, BD rows at a time.

    The iteration is algorithm 1 of arXiv 2506.05233, start and all, so that n steps are its n steps. lamb does not precondition here, as it
    does over sequences; norms for the tolerance are weighted by 1 / lamb here, too.
    """
    i_bh = tl.program_id(0).to(tl.int64)
    q += i_bh * K
    k += i_bh * K
    v += i_bh * V
    o += i_bh * V
    lamb += (i_bh % H) * K
    h_kk += i_bh * K * K
    h_kk_new += i_bh * K * K
    h_kv += i_bh * K * V
    h_kv_new += i_bh * K * V
    o_k = tl.arange(0, BK)
    m_k = o_k < K
    b_decay = exp(tl.load(g + i_bh).to(tl.float32))
    b_beta = tl.load(beta + i_bh).to(tl.float32)
    b_k = tl.load(k + o_k, mask=m_k, other=0.0).to(tl.float32)
    b_lamb = tl.load(lamb + o_k, mask=m_k, other=1.0).to(tl.float32)

    b_diagonal = tl.load(h_kk + o_k * (K + 1), mask=m_k, other=0.0) * b_decay + b_k * b_beta * b_k + b_lamb
    b_h = 0.0
    if RESIDENT:
        o_kk, m_kk = o_k[:, None] * K + o_k[None, :], m_k[:, None] & m_k[None, :]
        b_h = tl.load(h_kk + o_kk, mask=m_kk, other=0.0) * b_decay + (b_k * b_beta)[:, None] * b_k[None, :]
        tl.store(h_kk_new + o_kk, b_h, mask=m_kk)
    else:
        scratch += i_bh * K
        for i_d in range(0, K, BD):
            o_d = i_d + tl.arange(0, BD)
            m_dk = (o_d < K)[:, None] & m_k[None, :]
            b_kd = tl.load(k + o_d, mask=o_d < K, other=0.0).to(tl.float32)
            b_hd = tl.load(h_kk + o_d[:, None] * K + o_k[None, :], mask=m_dk, other=0.0)
            b_hd = b_hd * b_decay + (b_kd * b_beta)[:, None] * b_k[None, :]
            tl.store(h_kk_new + o_d[:, None] * K + o_k[None, :], b_hd, mask=m_dk)
        tl.debug_barrier()

    b_weight = 1.0 / b_lamb
    b_r, b_scale = scale_rows(tl.load(q + o_k, mask=m_k, other=0.0).to(tl.float32)[None, :])
    b_bb = tl.sum(b_r * b_r * b_weight[None, :], axis=1)
    b_enough = b_bb * tolerance * tolerance
    b_x = b_r / b_diagonal[None, :]
    b_r -= apply_state(b_x, b_h, h_kk_new, scratch, b_lamb, o_k, K, BK, BD, RESIDENT)
    b_rho = tl.sum(b_r * b_r, axis=1)
    b_rr = tl.sum(b_r * b_r * b_weight[None, :], axis=1)
    b_active = (b_rr > b_enough) & (b_bb > 0.0)
    b_steps = tl.zeros([1], dtype=tl.int32)
    b_p = b_r
    i_step = 0
    n_active = tl.sum(b_active.to(tl.int32))
    while (n_active > 0) & (i_step < max_steps):
        b_hp = apply_state(b_p, b_h, h_kk_new, scratch, b_lamb, o_k, K, BK, BD, RESIDENT)
        b_php = tl.sum(b_p * b_hp, axis=1)
        m_step = b_active & (b_php > 0.0)
        b_alpha = tl.where(m_step, b_rho / b_php, 0.0)
        b_x += b_alpha[:, None] * b_p
        b_r -= b_alpha[:, None] * b_hp
        b_rr = tl.where(
            m_step, tl.sum(b_r * b_r * b_weight[None, :], axis=1), tl.where(b_active, b_rr + (b_php - b_php), b_rr)
        )
        b_steps += b_active.to(tl.int32)
        b_active = m_step & (b_rr > b_enough)
        b_rho_before = b_rho
        b_rho = tl.sum(b_r * b_r, axis=1)
        b_p = tl.where(b_active[:, None], b_r + (b_rho / b_rho_before)[:, None] * b_p, 0.0)
        i_step += 1
        n_active = tl.sum(b_active.to(tl.int32))
    b_nan = (b_rr - b_rr) + (b_bb - b_bb)
    b_x = b_x * b_scale + b_nan[:, None]
    o_one = tl.arange(0, 1)
    tl.store(iterations + i_bh + o_one, b_steps)
    tl.store(residual + i_bh + o_one, tl.where(b_bb > 0.0, tl.sqrt(b_rr / b_bb), 0.0) + b_nan)

    b_x = tl.trans(b_x)
    for i_v in range(0, V, BV):
        o_v = i_v + tl.arange(0, BV)
        m_v = o_v < V
        o_kv, m_kv = o_k[:, None] * V + o_v[None, :], m_k[:, None] & m_v[None, :]
        b_v = tl.load(v + o_v, mask=m_v, other=0.0).to(tl.float32)
        b_g = tl.load(h_kv + o_kv, mask=m_kv, other=0.0) * b_decay + (b_k * b_beta)[:, None] * b_v[None, :]
        tl.store(h_kv_new + o_kv, b_g, mask=m_kv)
        tl.store(o + o_v, tl.sum(b_g * b_x, axis=0).to(o.dtype.element_ty), mask=m_v)
