# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false
# (device code: types mean something else to Triton)
"""All but the solve: the states before each chunk, and the gradients of states, keys, values and gates.

With dx_t = G_t do_t and y_t = (H_t + diag(lamb))^-1 dx_t, every gradient but those of q (which is y) and lamb (which is
- sum_t x_t * y_t) is that of   sum_t do_t.(G_t'x_t) - y_t.(H_t x_t)   with x and y held fixed.

States and their gradients take one pass over the chunks each, forward and in reverse.
"""

import triton
import triton.language as tl
from fla.ops.utils.op import exp2
from fla.utils import autotune_cache_kwargs

from fla_mesa.ops.triton.kernels_tile import dot, locate, scrub
from fla_mesa.ops.triton.plan import GRADIENT_CONFIGS, STATE_CONFIGS, gradient_configs, trusted


@triton.jit
def locate_block(cu_seqlens, chunk_offsets, T, H: tl.constexpr, BT: tl.constexpr, N_K: tl.constexpr, N_C: tl.constexpr,
                 IS_VARLEN: tl.constexpr):  # fmt: skip
    """Program -> (key block, column block, sequence * H + head, head, first position, length, chunks, index of the first)."""
    i_p = tl.program_id(0).to(tl.int64)
    i_c = (i_p % N_C).to(tl.int32)
    i_k = ((i_p // N_C) % N_K).to(tl.int32)
    i_nh = i_p // (N_C * N_K)
    i_n, i_h = i_nh // H, i_nh % H
    if IS_VARLEN:
        bos = tl.load(cu_seqlens + i_n).to(tl.int64)
        T = (tl.load(cu_seqlens + i_n + 1).to(tl.int64) - bos).to(tl.int32)
        i_s = tl.load(chunk_offsets + i_n).to(tl.int64)
    else:
        bos = i_n * T
        i_s = i_n * tl.cdiv(T, BT)
    return i_k, i_c, i_nh, i_h, bos, T, tl.cdiv(T, BT), i_s


@triton.jit
def accumulate(
    k, c, g, beta, s, s_init, s_final, i_k, i_c, i_nh, i_h, bos, T, n_chunks, i_s,
    H: tl.constexpr, K: tl.constexpr, N: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
    PRECISION: tl.constexpr, HAS_INIT: tl.constexpr,
):  # fmt: skip
    """S' = exp(a_C) S + (K * exp(a_C - a) beta)'C for one block [BK, BC] of S [K, N], all chunks of a sequence in turn; c [., H * N]."""
    o_k = i_k * BK + tl.arange(0, BK)
    o_c = i_c * BC + tl.arange(0, BC)
    m_k, m_c = o_k < K, o_c < N
    o_kc, m_kc = o_k[:, None] * N + o_c[None, :], m_k[:, None] & m_c[None, :]
    b_s = tl.zeros([BK, BC], dtype=tl.float32)
    if HAS_INIT:
        b_s += tl.load(s_init + i_nh * K * N + o_kc, mask=m_kc, other=0.0).to(tl.float32)

    for i_t in range(0, n_chunks):
        i_row = (bos + i_t * BT) * H + i_h
        n_left = T - i_t * BT
        tl.store(s + ((i_s + i_t) * H + i_h) * K * N + o_kc, b_s, mask=m_kc)

        b_last = tl.load(g + i_row + (tl.minimum(n_left, BT) - 1) * H).to(tl.float32)
        b_s *= exp2(b_last)
        for i_p in range(0, BT, BP):
            o_t = i_p + tl.arange(0, BP)
            m_t = o_t < n_left
            b_gt = tl.load(g + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
            b_beta = tl.load(beta + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
            b_weight = tl.where(m_t, exp2(b_last - b_gt) * b_beta, 0.0)
            p_k = k + i_row * K + o_t[:, None] * (H * K) + o_k[None, :]
            b_k = scrub(tl.load(p_k, mask=m_t[:, None] & m_k[None, :], other=0.0)).to(tl.float32)
            p_c = c + i_row * N + o_t[:, None] * (H * N) + o_c[None, :]
            b_c = tl.load(p_c, mask=m_t[:, None] & m_c[None, :], other=0.0)
            b_s = dot(tl.trans(b_k * b_weight[:, None]), b_c, b_s, PRECISION)

    tl.store(s_final + i_nh * K * N + o_kc, b_s, mask=m_kc)


@triton.heuristics(
    {
        "HAS_INIT": lambda args: args["h_kk_init"] is not None,
        "IS_VARLEN": lambda args: args["cu_seqlens"] is not None,
    }
)
@triton.autotune(
    configs=STATE_CONFIGS,
    key=["H", "K", "V", "BT", "BK", "BC", "BP", "PRECISION", "size"],
    prune_configs_by={"early_config_prune": trusted},
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["T", "size"])
def states_kernel(
    k, v, g, beta, h_kk, h_kv, h_kk_init, h_kv_init, h_kk_final, h_kv_final, cu_seqlens, chunk_offsets, T, size,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
    BP: tl.constexpr, N_K: tl.constexpr, N_CK: tl.constexpr, N_CV: tl.constexpr, PRECISION: tl.constexpr, HAS_INIT: tl.constexpr,
    IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """The states H, of keys with keys, and G, of keys with values, before each chunk: N_CK blocks of columns are H's, N_CV are G's."""
    i_k, i_c, i_nh, i_h, bos, T, n_chunks, i_s = locate_block(
        cu_seqlens, chunk_offsets, T, H, BT, N_K, N_CK + N_CV, IS_VARLEN
    )
    if i_c < N_CK:
        accumulate(k, k, g, beta, h_kk, h_kk_init, h_kk_final, i_k, i_c, i_nh, i_h, bos, T, n_chunks, i_s,
                   H, K, K, BT, BK, BC, BP, PRECISION, HAS_INIT)  # fmt: skip
    else:
        accumulate(k, v, g, beta, h_kv, h_kv_init, h_kv_final, i_k, i_c - N_CK, i_nh, i_h, bos, T, n_chunks, i_s,
                   H, K, V, BT, BK, BC, BP, PRECISION, HAS_INIT)  # fmt: skip


@triton.jit
def accumulate_back(
    a, c, sign, g, s, s_final, ds, ds_final, ds_init, inner, i_k, i_c, i_part, i_nh, i_h, bos, T, n_chunks, i_s,
    H: tl.constexpr, K: tl.constexpr, N: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
    N_PARTS: tl.constexpr, PRECISION: tl.constexpr, HAS_FINAL: tl.constexpr, HAS_INIT: tl.constexpr,
):  # fmt: skip
    """dS <- exp(a_C) dS + sign (A * exp(a))'C for one block [BK, BC] of dS [K, N], from the last chunk to the first."""
    o_k = i_k * BK + tl.arange(0, BK)
    o_c = i_c * BC + tl.arange(0, BC)
    m_k, m_c = o_k < K, o_c < N
    o_kc, m_kc = o_k[:, None] * N + o_c[None, :], m_k[:, None] & m_c[None, :]
    b_ds = tl.zeros([BK, BC], dtype=tl.float32)
    if HAS_FINAL:
        b_ds += tl.load(ds_final + i_nh * K * N + o_kc, mask=m_kc, other=0.0).to(tl.float32)
    # The state after a chunk is the one stored before the next, or the final one.
    p_after = s_final + i_nh * K * N

    for i_back in range(0, n_chunks):
        i_t = n_chunks - 1 - i_back
        i_row = (bos + i_t * BT) * H + i_h
        n_left = T - i_t * BT
        i_state = (i_s + i_t) * H + i_h
        tl.store(ds + i_state * K * N + o_kc, b_ds, mask=m_kc)
        b_s = tl.load(p_after + o_kc, mask=m_kc, other=0.0)
        tl.store(inner + i_state * N_PARTS + i_part, tl.sum(b_ds * b_s))
        p_after = s + i_state * K * N

        b_ds *= exp2(tl.load(g + i_row + (tl.minimum(n_left, BT) - 1) * H).to(tl.float32))
        for i_p in range(0, BT, BP):
            o_t = i_p + tl.arange(0, BP)
            m_t = o_t < n_left
            b_decay = sign * exp2(tl.load(g + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32))
            p_a = a + i_row * K + o_t[:, None] * (H * K) + o_k[None, :]
            b_a = tl.load(p_a, mask=m_t[:, None] & m_k[None, :], other=0.0) * b_decay[:, None]
            p_c = c + i_row * N + o_t[:, None] * (H * N) + o_c[None, :]
            b_c = tl.load(p_c, mask=m_t[:, None] & m_c[None, :], other=0.0)
            b_ds = dot(tl.trans(b_a), b_c, b_ds, PRECISION)

    if HAS_INIT:
        tl.store(ds_init + i_nh * K * N + o_kc, b_ds, mask=m_kc)


@triton.heuristics(
    {
        "HAS_DH_KK": lambda args: args["dh_kk_final"] is not None,
        "HAS_DH_KV": lambda args: args["dh_kv_final"] is not None,
        "HAS_INIT": lambda args: args["dh_kk_init"] is not None,
        "IS_VARLEN": lambda args: args["cu_seqlens"] is not None,
    }
)
@triton.autotune(
    configs=STATE_CONFIGS,
    key=["H", "K", "V", "BT", "BK", "BC", "BP", "PRECISION", "size"],
    prune_configs_by={"early_config_prune": trusted},
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["T", "size"])
def states_backward_kernel(
    x, y, do, g, h_kk, h_kv, h_kk_final, h_kv_final, dh_kk_final, dh_kv_final,
    dh_kk, dh_kv, dh_kk_init, dh_kv_init, inner, cu_seqlens, chunk_offsets, T, size,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
    BP: tl.constexpr, N_K: tl.constexpr, N_CK: tl.constexpr, N_CV: tl.constexpr, PRECISION: tl.constexpr,
    HAS_DH_KK: tl.constexpr, HAS_DH_KV: tl.constexpr, HAS_INIT: tl.constexpr, IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """Gradients dH, dG of the states after each chunk:

        dH <- exp(a_C) dH - (Y * exp(a))'X ,    dG <- exp(a_C) dG + (X * exp(a))'dO

    `inner` [chunks, H, N_K * (N_CK + N_CV)] receives each block's part of <dH, H> + <dG, G> after each chunk: the gradient of a
    decay that acts on all that the state holds by then.
    """
    i_k, i_c, i_nh, i_h, bos, T, n_chunks, i_s = locate_block(
        cu_seqlens, chunk_offsets, T, H, BT, N_K, N_CK + N_CV, IS_VARLEN
    )
    N_PARTS: tl.constexpr = N_K * (N_CK + N_CV)
    i_part = i_k * (N_CK + N_CV) + i_c
    if i_c < N_CK:
        accumulate_back(y, x, -1.0, g, h_kk, h_kk_final, dh_kk, dh_kk_final, dh_kk_init, inner, i_k, i_c, i_part, i_nh, i_h,
                        bos, T, n_chunks, i_s, H, K, K, BT, BK, BC, BP, N_PARTS, PRECISION, HAS_DH_KK, HAS_INIT)  # fmt: skip
    else:
        accumulate_back(x, do, 1.0, g, h_kv, h_kv_final, dh_kv, dh_kv_final, dh_kv_init, inner, i_k, i_c - N_CK, i_part, i_nh, i_h,
                        bos, T, n_chunks, i_s, H, K, V, BT, BK, BC, BP, N_PARTS, PRECISION, HAS_DH_KV, HAS_INIT)  # fmt: skip


@triton.heuristics({"IS_VARLEN": lambda args: args["cu_seqlens"] is not None})
@triton.autotune(
    configs=GRADIENT_CONFIGS,
    key=["H", "K", "V", "BT", "BR", "PRECISION", "size"],
    prune_configs_by={"early_config_prune": gradient_configs},
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["T", "n_chunks", "size"])
def keys_values_backward_kernel(
    k, v, g, beta, x, y, do, dh_kk, dh_kv, inner, da_rows, dq, dk, dv, dbeta, da, dlamb, cu_seqlens, chunk_indices,
    T, n_chunks, size,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
    BN: tl.constexpr, PRECISION: tl.constexpr, IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """dk, dv, dbeta and what the decay receives, for BR keys s of a chunk and all its rows t >= s. With dH, dG after the chunk,

    D_st  = exp(a_t - a_s) ,   U = D * (K X') ,   W = D * (V dO' - K Y') ,   e_s = exp(a_C - a_s)
    dk    = beta (W X - U Y + e (V dG' + K (dH + dH')))
    dv    = beta (U dO + e K dG)
    dbeta = sum_t U * (V dO' - K Y') + e sum_k K * (V dG' + K dH)

    and the chunk's part of dlamb, which all programs of the chunk have and the first one stores.
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
    x += i_row * K
    y += i_row * K
    do += i_row * V
    dk += i_row * K
    if dq is not None:
        dq += i_row * K
    dv += i_row * V
    g += i_row
    beta += i_row
    dh_kk += (i_s * H + i_h) * K * K
    dh_kv += (i_s * H + i_h) * K * V
    o_sk, o_tk = o_s[:, None] * (H * K), o_t[:, None] * (H * K)
    o_sv, o_tv = o_s[:, None] * (H * V), o_t[:, None] * (H * V)

    b_kx = tl.zeros([BR, BT], dtype=tl.float32)
    b_w = tl.zeros([BR, BT], dtype=tl.float32)
    for i_d in range(0, K, BD):
        o_d = i_d + tl.arange(0, BD)
        m_d = (o_d < K)[None, :]
        b_k = tl.load(k + o_sk + o_d[None, :], mask=m_s[:, None] & m_d, other=0.0)
        b_x = tl.load(x + o_tk + o_d[None, :], mask=m_t[:, None] & m_d, other=0.0)
        b_kx = dot(b_k, tl.trans(b_x), b_kx, PRECISION)
        b_y = tl.load(y + o_tk + o_d[None, :], mask=m_t[:, None] & m_d, other=0.0)
        b_w = dot(b_k, tl.trans(-b_y), b_w, PRECISION)
        if i_r == 0:
            tl.store(dlamb + (i_s * H + i_h) * K + o_d, -tl.sum(b_x * b_y, axis=0), mask=o_d < K)
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
        o_skn, o_tkn = o_sn[:, None] * (H * K), o_tn[:, None] * (H * K)
        o_svn, o_tvn = o_sn[:, None] * (H * V), o_tn[:, None] * (H * V)
        o_n = i_n + tl.arange(0, BN)
        m_n = o_n < K
        b_dk = tl.zeros([BR, BN], dtype=tl.float32)
        for i_d in range(0, V, BD):
            o_d = i_d + tl.arange(0, BD)
            m_d = o_d < V
            b_v = tl.load(v + o_svn + o_d[None, :], mask=m_sn[:, None] & m_d[None, :], other=0.0)
            b_dg = tl.load(dh_kv + o_n[:, None] * V + o_d[None, :], mask=m_n[:, None] & m_d[None, :], other=0.0)
            b_dk = dot(b_v, tl.trans(b_dg), b_dk, PRECISION)
        b_kn = tl.load(k + o_skn + o_n[None, :], mask=m_sn[:, None] & m_n[None, :], other=0.0).to(tl.float32)
        b_dbeta += b_end * tl.sum(0.5 * b_kn * b_dk, axis=1, keep_dims=True)
        for i_d in range(0, K, BD):
            o_d = i_d + tl.arange(0, BD)
            m_d = o_d < K
            b_k = tl.load(k + o_skn + o_d[None, :], mask=m_sn[:, None] & m_d[None, :], other=0.0)
            b_dh = tl.load(dh_kk + o_n[:, None] * K + o_d[None, :], mask=m_n[:, None] & m_d[None, :], other=0.0)
            b_dh = tl.trans(b_dh)
            b_dh += tl.load(dh_kk + o_d[:, None] * K + o_n[None, :], mask=m_d[:, None] & m_n[None, :], other=0.0)
            b_dk = dot(b_k, b_dh, b_dk, PRECISION)
        # k'(dH + dH')k is twice k'dH k: with what came before, half of each sum.
        b_kn = tl.load(k + o_skn + o_n[None, :], mask=m_sn[:, None] & m_n[None, :], other=0.0).to(tl.float32)
        b_dbeta += b_end * tl.sum(0.5 * b_kn * b_dk, axis=1, keep_dims=True)
        b_dk *= b_end
        b_x = tl.load(x + o_tkn + o_n[None, :], mask=m_tn[:, None] & m_n[None, :], other=0.0)
        b_dk = dot(b_w, b_x, b_dk, PRECISION)
        b_y = tl.load(y + o_tkn + o_n[None, :], mask=m_tn[:, None] & m_n[None, :], other=0.0)
        if dq is not None:  # where one program has all rows
            tl.store(dq + o_tkn + o_n[None, :], b_y.to(dq.dtype.element_ty), mask=m_tn[:, None] & m_n[None, :])
        b_dk = dot(-b_u, b_y, b_dk, PRECISION)
        b_beta = tl.load(beta + o_sn[:, None] * H, mask=m_sn[:, None], other=0.0).to(tl.float32)
        b_dk *= b_beta
        tl.store(dk + o_skn + o_n[None, :], b_dk.to(dk.dtype.element_ty), mask=m_sn[:, None] & m_n[None, :])

    for i_n in range(0, V, BN):
        i_zero = tl.multiple_of(tl.minimum(i_n + T, 0), 128)
        o_sn = i_r * BR + tl.arange(0, BR) + i_zero
        o_tn = tl.arange(0, BT) + i_zero
        m_sn, m_tn = o_sn < T, o_tn < T
        o_skn, o_tkn = o_sn[:, None] * (H * K), o_tn[:, None] * (H * K)
        o_svn, o_tvn = o_sn[:, None] * (H * V), o_tn[:, None] * (H * V)
        o_n = i_n + tl.arange(0, BN)
        m_n = (o_n < V)[None, :]
        b_dv = tl.zeros([BR, BN], dtype=tl.float32)
        for i_d in range(0, K, BD):
            o_d = i_d + tl.arange(0, BD)
            m_d = o_d < K
            b_k = tl.load(k + o_skn + o_d[None, :], mask=m_sn[:, None] & m_d[None, :], other=0.0)
            b_dg = tl.load(dh_kv + o_d[:, None] * V + o_n[None, :], mask=m_d[:, None] & m_n, other=0.0)
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
