# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false
# (device code: types mean something else to Triton)
"""The states before each chunk, forward, and their gradients after each chunk, in reverse: one pass over the chunks each."""

import triton
import triton.language as tl
from fla.ops.utils.op import exp2
from fla.utils import autotune_cache_kwargs

from fla_mesa.ops.triton.kernels_tile import dot, scrub
from fla_mesa.ops.triton.plan import STATE_CONFIGS, trusted


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
