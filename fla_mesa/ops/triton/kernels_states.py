# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false
# (device code: types mean something else to Triton)
"""The states before each chunk, forward, and their gradients after each chunk, in reverse: one pass over the chunks each."""

import triton
import triton.language as tl
from fla.ops.utils.op import exp2
from fla.utils import autotune_cache_kwargs

from fla_mesa.ops.triton.kernels_tile import dot, scrub

CONFIGS = [triton.Config({}, num_warps=w, num_stages=s) for w, s in ((4, 2), (4, 1), (2, 2))]
# Four warps spill a few bytes.
CONFIGS_BACKWARD = [triton.Config({}, num_warps=w, num_stages=s) for w, s in ((8, 2), (4, 2), (2, 2))]


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


@triton.heuristics(
    {
        "HAS_INIT": lambda args: args["h_kk_init"] is not None,
        "IS_VARLEN": lambda args: args["cu_seqlens"] is not None,
    }
)
@triton.autotune(configs=CONFIGS, key=["H", "K", "V", "BT", "BK", "BC", "BP", "PRECISION"], **autotune_cache_kwargs)
@triton.jit(do_not_specialize=["T"])
def states_kernel(
    k, v, g, beta, h_kk, h_kv, h_kk_init, h_kv_init, h_kk_final, h_kv_final, cu_seqlens, chunk_offsets, T,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
    BP: tl.constexpr, N_K: tl.constexpr, N_C: tl.constexpr, PRECISION: tl.constexpr, HAS_INIT: tl.constexpr, IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """H' = exp(a_C) H + (K * exp(a_C - a) beta)'K and G' likewise with V: one block [BK, BC] of each, all chunks in turn."""
    i_k, i_c, i_nh, i_h, bos, T, n_chunks, i_s = locate_block(cu_seqlens, chunk_offsets, T, H, BT, N_K, N_C, IS_VARLEN)
    o_k = i_k * BK + tl.arange(0, BK)
    o_c = i_c * BC + tl.arange(0, BC)
    m_k, m_ck, m_cv = o_k < K, o_c < K, o_c < V
    o_kk, m_kk = o_k[:, None] * K + o_c[None, :], m_k[:, None] & m_ck[None, :]
    o_kv, m_kv = o_k[:, None] * V + o_c[None, :], m_k[:, None] & m_cv[None, :]
    if HAS_INIT:
        b_h = tl.load(h_kk_init + i_nh * K * K + o_kk, mask=m_kk, other=0.0).to(tl.float32)
        b_g = tl.load(h_kv_init + i_nh * K * V + o_kv, mask=m_kv, other=0.0).to(tl.float32)
    else:
        b_h = tl.zeros([BK, BC], dtype=tl.float32)
        b_g = tl.zeros([BK, BC], dtype=tl.float32)

    for i_t in range(0, n_chunks):
        i_row = (bos + i_t * BT) * H + i_h
        n_left = T - i_t * BT
        i_state = (i_s + i_t) * H + i_h
        tl.store(h_kk + i_state * K * K + o_kk, b_h, mask=m_kk)
        tl.store(h_kv + i_state * K * V + o_kv, b_g, mask=m_kv)

        b_last = tl.load(g + i_row + (tl.minimum(n_left, BT) - 1) * H).to(tl.float32)
        b_h *= exp2(b_last)
        b_g *= exp2(b_last)
        for i_p in range(0, tl.minimum(n_left, BT), BP):
            o_t = i_p + tl.arange(0, BP)
            m_t = o_t < n_left
            b_gt = tl.load(g + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
            b_beta = tl.load(beta + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
            b_weight = tl.where(m_t, exp2(b_last - b_gt) * b_beta, 0.0)
            p_k = k + i_row * K + o_t[:, None] * (H * K)
            b_k = scrub(tl.load(p_k + o_k[None, :], mask=m_t[:, None] & m_k[None, :], other=0.0)).to(tl.float32)
            b_k = tl.trans(b_k * b_weight[:, None])
            if i_c * BC < K:
                b_kc = tl.load(p_k + o_c[None, :], mask=m_t[:, None] & m_ck[None, :], other=0.0)
                b_h = dot(b_k, b_kc, b_h, PRECISION)
            if i_c * BC < V:
                p_v = v + i_row * V + o_t[:, None] * (H * V) + o_c[None, :]
                b_v = tl.load(p_v, mask=m_t[:, None] & m_cv[None, :], other=0.0)
                b_g = dot(b_k, b_v, b_g, PRECISION)

    tl.store(h_kk_final + i_nh * K * K + o_kk, b_h, mask=m_kk)
    tl.store(h_kv_final + i_nh * K * V + o_kv, b_g, mask=m_kv)


@triton.heuristics(
    {
        "HAS_DH_KK": lambda args: args["dh_kk_final"] is not None,
        "HAS_DH_KV": lambda args: args["dh_kv_final"] is not None,
        "HAS_INIT": lambda args: args["dh_kk_init"] is not None,
        "IS_VARLEN": lambda args: args["cu_seqlens"] is not None,
    }
)
@triton.autotune(
    configs=CONFIGS_BACKWARD, key=["H", "K", "V", "BT", "BK", "BC", "BP", "PRECISION"], **autotune_cache_kwargs
)
@triton.jit(do_not_specialize=["T"])
def states_backward_kernel(
    x, y, do, g, h_kk, h_kv, h_kk_final, h_kv_final, dh_kk_final, dh_kv_final,
    dh_kk, dh_kv, dh_kk_init, dh_kv_init, inner, cu_seqlens, chunk_offsets, T,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
    BP: tl.constexpr, N_K: tl.constexpr, N_C: tl.constexpr, PRECISION: tl.constexpr,
    HAS_DH_KK: tl.constexpr, HAS_DH_KV: tl.constexpr, HAS_INIT: tl.constexpr, IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """Gradients dH, dG of the states after each chunk, from the last to the first, one block [BK, BC] of each:

        dH <- exp(a_C) dH - (Y * exp(a))'X ,    dG <- exp(a_C) dG + (X * exp(a))'dO

    `inner` [chunks, H, N_K * N_C] receives this block's part of <dH, H> + <dG, G> after each chunk: the gradient of a decay
    that acts on all that the state holds by then.
    """
    i_k, i_c, i_nh, i_h, bos, T, n_chunks, i_s = locate_block(cu_seqlens, chunk_offsets, T, H, BT, N_K, N_C, IS_VARLEN)
    o_k = i_k * BK + tl.arange(0, BK)
    o_c = i_c * BC + tl.arange(0, BC)
    m_k, m_ck, m_cv = o_k < K, o_c < K, o_c < V
    o_kk, m_kk = o_k[:, None] * K + o_c[None, :], m_k[:, None] & m_ck[None, :]
    o_kv, m_kv = o_k[:, None] * V + o_c[None, :], m_k[:, None] & m_cv[None, :]
    b_dh = tl.zeros([BK, BC], dtype=tl.float32)
    b_dg = tl.zeros([BK, BC], dtype=tl.float32)
    if HAS_DH_KK:
        b_dh += tl.load(dh_kk_final + i_nh * K * K + o_kk, mask=m_kk, other=0.0).to(tl.float32)
    if HAS_DH_KV:
        b_dg += tl.load(dh_kv_final + i_nh * K * V + o_kv, mask=m_kv, other=0.0).to(tl.float32)
    # The state after a chunk is the one stored before the next, or the final one.
    b_h = tl.load(h_kk_final + i_nh * K * K + o_kk, mask=m_kk, other=0.0).to(tl.float32)
    b_g = tl.load(h_kv_final + i_nh * K * V + o_kv, mask=m_kv, other=0.0).to(tl.float32)

    for i_back in range(0, n_chunks):
        i_t = n_chunks - 1 - i_back
        i_row = (bos + i_t * BT) * H + i_h
        n_left = T - i_t * BT
        i_state = (i_s + i_t) * H + i_h
        tl.store(dh_kk + i_state * K * K + o_kk, b_dh, mask=m_kk)
        tl.store(dh_kv + i_state * K * V + o_kv, b_dg, mask=m_kv)
        tl.store(inner + i_state * (N_K * N_C) + i_k * N_C + i_c, tl.sum(b_dh * b_h) + tl.sum(b_dg * b_g))
        b_h = tl.load(h_kk + i_state * K * K + o_kk, mask=m_kk, other=0.0)
        b_g = tl.load(h_kv + i_state * K * V + o_kv, mask=m_kv, other=0.0)

        b_last = exp2(tl.load(g + i_row + (tl.minimum(n_left, BT) - 1) * H).to(tl.float32))
        b_dh *= b_last
        b_dg *= b_last
        for i_p in range(0, tl.minimum(n_left, BT), BP):
            o_t = i_p + tl.arange(0, BP)
            m_t = o_t < n_left
            m_tk = m_t[:, None] & m_k[None, :]
            b_decay = exp2(tl.load(g + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32))
            p_x = x + i_row * K + o_t[:, None] * (H * K)
            p_y = y + i_row * K + o_t[:, None] * (H * K)
            if i_c * BC < K:
                b_y = tl.load(p_y + o_k[None, :], mask=m_tk, other=0.0) * -b_decay[:, None]
                b_xc = tl.load(p_x + o_c[None, :], mask=m_t[:, None] & m_ck[None, :], other=0.0)
                b_dh = dot(tl.trans(b_y), b_xc, b_dh, PRECISION)
            if i_c * BC < V:
                b_x = tl.load(p_x + o_k[None, :], mask=m_tk, other=0.0) * b_decay[:, None]
                p_do = do + i_row * V + o_t[:, None] * (H * V) + o_c[None, :]
                b_do = tl.load(p_do, mask=m_t[:, None] & m_cv[None, :], other=0.0)
                b_dg = dot(tl.trans(b_x), b_do, b_dg, PRECISION)

    if HAS_INIT:
        tl.store(dh_kk_init + i_nh * K * K + o_kk, b_dh, mask=m_kk)
        tl.store(dh_kv_init + i_nh * K * V + o_kv, b_dg, mask=m_kv)
