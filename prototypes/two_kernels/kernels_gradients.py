# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false
# (device code: types mean something else to Triton)
"""The gradients of keys, values and gates.

With dx_t = G_t do_t and y_t = (H_t + diag(lamb))^-1 dx_t, every gradient but those of q (which is y) and lamb (which is
- sum_t x_t * y_t) is that of   sum_t do_t.(G_t'x_t) - y_t.(H_t x_t)   with x and y held fixed.
"""

import triton
import triton.language as tl
from fla.ops.utils.op import exp2
from fla.utils import autotune_cache_kwargs

from fla_mesa.ops.triton.kernels_tile import dot, load_rows, locate
from fla_mesa.ops.triton.plan import GRADIENT_CONFIGS, gradient_configs


@triton.jit
def rows(x, o_t, o_k, T, H: tl.constexpr, K: tl.constexpr, X: tl.constexpr):
    """Rows that `load_rows` reads, in float32."""
    b_x, b_scale = load_rows(x, o_t, o_k, T, H, K, X)
    return b_x.to(tl.float32) * b_scale


@triton.jit
def load_block(s, scale, o_k, o_c, K: tl.constexpr, N: tl.constexpr, BC: tl.constexpr):
    """Rows o_k and columns o_c, within blocks of BC, of a state [K, N] that `store_block` stored; float32."""
    m_kc = (o_k < K)[:, None] & (o_c < N)[None, :]
    b_s = tl.load(s + o_k[:, None] * N + o_c[None, :], mask=m_kc, other=0.0).to(tl.float32)
    if scale is not None:
        b_s *= tl.load(scale + tl.min(o_k) // BC * tl.cdiv(N, BC) + tl.min(o_c) // BC)
    return b_s


@triton.heuristics({"IS_VARLEN": lambda args: args["cu_seqlens"] is not None})
@triton.autotune(
    configs=GRADIENT_CONFIGS,
    key=["H", "K", "V", "BT", "BR", "PRECISION", "size"],
    prune_configs_by={"early_config_prune": gradient_configs},
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["T", "n_chunks", "size"])
def keys_values_backward_kernel(
    k, v, g, beta, x, y, do, dh_kk, dh_kk_scale, dh_kv, dh_kv_scale, inner, da_rows, dk, dv, dbeta, da, cu_seqlens, chunk_indices,
    T, n_chunks, size,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, X: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr, IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """dk, dv, dbeta and what the decay receives, for BR keys s of a chunk and all its rows t >= s. With dH, dG after the chunk,

    D_st  = exp(a_t - a_s) ,   U = D * (K X') ,   W = D * (V dO' - K Y') ,   e_s = exp(a_C - a_s)
    dk    = beta (W X - U Y + e (V dG' + K (dH + dH')))
    dv    = beta (U dO + e K dG)
    dbeta = sum_t U * (V dO' - K Y') + e sum_k K * (V dG' + K dH)
    """
    i_r, i_s, i_h, first, T = locate(
        tl.program_id(0), cu_seqlens, chunk_indices, T, n_chunks, H, BT, BT // BR, IS_VARLEN
    )
    o_s = i_r * BR + tl.arange(0, BR)
    o_t = tl.arange(0, BT)
    m_s, m_t = o_s < T, o_t < T
    i_row = first * H + i_h
    k += i_row * K
    v += i_row * V
    x += i_row * X
    y += i_row * X
    do += i_row * V
    dk += i_row * K
    dv += i_row * V
    g += i_row
    beta += i_row
    dh_kk += (i_s * H + i_h) * K * K
    dh_kv += (i_s * H + i_h) * K * V
    if dh_kk_scale is not None:
        dh_kk_scale += (i_s * H + i_h) * tl.cdiv(K, BC) * tl.cdiv(K, BC)
        dh_kv_scale += (i_s * H + i_h) * tl.cdiv(K, BC) * tl.cdiv(V, BC)
    o_sk = o_s[:, None] * (H * K)
    o_sv, o_tv = o_s[:, None] * (H * V), o_t[:, None] * (H * V)

    b_kx = tl.zeros([BR, BT], dtype=tl.float32)
    b_w = tl.zeros([BR, BT], dtype=tl.float32)
    for i_d in range(0, K, BD):
        o_d = i_d + tl.arange(0, BD)
        m_d = (o_d < K)[None, :]
        b_k = tl.load(k + o_sk + o_d[None, :], mask=m_s[:, None] & m_d, other=0.0)
        b_x = rows(x, o_t, o_d, T, H, K, X)
        b_kx = dot(b_k, tl.trans(b_x), b_kx, PRECISION)
        b_y = rows(y, o_t, o_d, T, H, K, X)
        b_w = dot(b_k, tl.trans(-b_y), b_w, PRECISION)
    for i_d in range(0, V, BD):
        o_d = i_d + tl.arange(0, BD)
        m_d = (o_d < V)[None, :]
        b_v = tl.load(v + o_sv + o_d[None, :], mask=m_s[:, None] & m_d, other=0.0)
        b_do = tl.load(do + o_tv + o_d[None, :], mask=m_t[:, None] & m_d, other=0.0)
        b_w = dot(b_v, tl.trans(b_do), b_w, PRECISION)

    b_gs = tl.load(g + o_s[:, None] * H, mask=m_s[:, None], other=0.0).to(tl.float32)
    b_gt = tl.load(g + o_t[None, :] * H, mask=m_t[None, :], other=0.0).to(tl.float32)
    m_causal = (o_t[None, :] >= o_s[:, None]) & m_t[None, :] & m_s[:, None]
    b_d = tl.where(m_causal, exp2(tl.minimum(b_gt - b_gs, 0.0)), 0.0)
    b_u = b_kx * b_d
    b_dbeta = tl.sum(b_u * b_w, axis=1, keep_dims=True)
    b_w *= b_d
    b_end = tl.where(m_s[:, None], exp2(tl.load(g + (T - 1) * H).to(tl.float32) - b_gs), 0.0)

    # Rows are counted from a zero that the compiler cannot foresee: it would keep addresses and masks across the loops, and spill.
    i_zero = 0
    for i_n in range(0, K, BN):
        i_zero = tl.multiple_of(tl.minimum(i_n + T, 0), 128)
        o_sn = i_r * BR + tl.arange(0, BR) + i_zero
        o_tn = tl.arange(0, BT) + i_zero
        m_sn, m_tn = o_sn < T, o_tn < T
        o_skn = o_sn[:, None] * (H * K)
        o_svn, o_tvn = o_sn[:, None] * (H * V), o_tn[:, None] * (H * V)
        o_n = i_n + tl.arange(0, BN)
        m_n = o_n < K
        b_dk = tl.zeros([BR, BN], dtype=tl.float32)
        for i_d in range(0, V, BD):
            o_d = i_d + tl.arange(0, BD)
            m_d = o_d < V
            b_v = tl.load(v + o_svn + o_d[None, :], mask=m_sn[:, None] & m_d[None, :], other=0.0)
            b_dg = load_block(dh_kv, dh_kv_scale, o_n, o_d, K, V, BC)
            b_dk = dot(b_v, tl.trans(b_dg), b_dk, PRECISION)
        b_kn = tl.load(k + o_skn + o_n[None, :], mask=m_sn[:, None] & m_n[None, :], other=0.0).to(tl.float32)
        b_dbeta += b_end * tl.sum(0.5 * b_kn * b_dk, axis=1, keep_dims=True)
        for i_d in range(0, K, BD):
            o_d = i_d + tl.arange(0, BD)
            m_d = o_d < K
            b_k = tl.load(k + o_skn + o_d[None, :], mask=m_sn[:, None] & m_d[None, :], other=0.0)
            b_dh = tl.trans(load_block(dh_kk, dh_kk_scale, o_n, o_d, K, K, BC))
            b_dh += load_block(dh_kk, dh_kk_scale, o_d, o_n, K, K, BC)
            b_dk = dot(b_k, b_dh, b_dk, PRECISION)
        # k'(dH + dH')k is twice k'dH k: with what came before, half of each sum.
        b_kn = tl.load(k + o_skn + o_n[None, :], mask=m_sn[:, None] & m_n[None, :], other=0.0).to(tl.float32)
        b_dbeta += b_end * tl.sum(0.5 * b_kn * b_dk, axis=1, keep_dims=True)
        b_dk *= b_end
        b_x = rows(x, o_tn, o_n, T, H, K, X)
        b_dk = dot(b_w, b_x, b_dk, PRECISION)
        b_y = rows(y, o_tn, o_n, T, H, K, X)
        b_dk = dot(-b_u, b_y, b_dk, PRECISION)
        b_beta = tl.load(beta + o_sn[:, None] * H, mask=m_sn[:, None], other=0.0).to(tl.float32)
        b_dk *= b_beta
        tl.store(dk + o_skn + o_n[None, :], b_dk.to(dk.dtype.element_ty), mask=m_sn[:, None] & m_n[None, :])

    for i_n in range(0, V, BN):
        i_zero = tl.multiple_of(tl.minimum(i_n + T, 0), 128)
        o_sn = i_r * BR + tl.arange(0, BR) + i_zero
        o_tn = tl.arange(0, BT) + i_zero
        m_sn, m_tn = o_sn < T, o_tn < T
        o_skn = o_sn[:, None] * (H * K)
        o_svn, o_tvn = o_sn[:, None] * (H * V), o_tn[:, None] * (H * V)
        o_n = i_n + tl.arange(0, BN)
        m_n = (o_n < V)[None, :]
        b_dv = tl.zeros([BR, BN], dtype=tl.float32)
        for i_d in range(0, K, BD):
            o_d = i_d + tl.arange(0, BD)
            m_d = o_d < K
            b_k = tl.load(k + o_skn + o_d[None, :], mask=m_sn[:, None] & m_d[None, :], other=0.0)
            b_dg = load_block(dh_kv, dh_kv_scale, o_d, o_n, K, V, BC)
            b_dv = dot(b_k, b_dg, b_dv, PRECISION)
        b_do = tl.load(do + o_tvn + o_n[None, :], mask=m_tn[:, None] & m_n, other=0.0)
        b_dv = dot(b_u, b_do, b_dv * b_end, PRECISION)
        b_beta = tl.load(beta + o_sn[:, None] * H, mask=m_sn[:, None], other=0.0).to(tl.float32)
        b_dv *= b_beta
        tl.store(dv + o_svn + o_n[None, :], b_dv.to(dv.dtype.element_ty), mask=m_sn[:, None] & m_n)

    # The decay: a key's weight falls with -a_s; the whole state's, after the chunk's last position.
    o_s = (i_r * BR + tl.arange(0, BR) + i_zero)[:, None]
    m_s = o_s < T
    b_beta = tl.load(beta + o_s * H, mask=m_s, other=0.0).to(tl.float32)
    b_inner = tl.load(inner + i_s * H + i_h + i_zero)
    b_da = tl.load(da_rows + (i_row + i_zero) + o_s * H, mask=m_s, other=0.0)
    b_da += tl.where(o_s == T - 1, b_inner, 0.0) - b_beta * b_dbeta
    tl.store(da + i_row + o_s * H, b_da, mask=m_s)
    tl.store(dbeta + i_row + o_s * H, b_dbeta, mask=m_s)
