# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false
# (device code: types mean something else to Triton)
"""The states before each chunk, forward, and their gradients after each chunk, in reverse: one pass over the chunks each.

They are stored in float32 or, where X > K, in float16: G and the gradients over a power of two for each block, H in the coordinates of the
solve, as diag(lamb)^-1/2 H diag(lamb)^-1/2 in two parts over one power of two, `unit`.
"""

import triton
import triton.language as tl
from fla.ops.utils.op import exp2
from fla.utils import autotune_cache_kwargs

from fla_mesa.ops.triton.kernels_tile import dot, exponent, halves, inverse_root, load_rows, power, scrub
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
def place(scale, i_state, i_k, i_c, K: tl.constexpr, N: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr):
    """Where the power of two of a block [BK, BC] of a state [K, N] is."""
    return scale + (i_state * tl.cdiv(K, BK) + i_k) * tl.cdiv(N, BC) + i_c


@triton.jit
def store_block(p_s, p_scale, b_s, m_s):
    """A block of a state: as it is or, where there is a place for one, float16 over a power of two."""
    if p_scale is not None:
        b_e = exponent(tl.max(tl.abs(scrub(b_s))))
        tl.store(p_scale, power(b_e))
        b_s *= power(-b_e)
    tl.store(p_s, b_s.to(p_s.dtype.element_ty), mask=m_s)


@triton.jit
def accumulate(
    k, c, g, beta, s, s_scale, s_init, s_final, lamb, norm, h_low, h_unit, i_k, i_c, i_nh, i_h, bos, T, n_chunks, i_s,
    H: tl.constexpr, K: tl.constexpr, N: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
    N_K: tl.constexpr, PRECISION: tl.constexpr, HAS_INIT: tl.constexpr,
):  # fmt: skip
    """S' = exp(a_C) S + (K * exp(a_C - a) beta)'C for one block [BK, BC] of S [K, N], all chunks of a sequence in turn; c [., H * N].

    With `h_low` S is H, for the solve in float16. Its power of two bounds the trace, which every program of a head follows, from the
    squared `norm` of the keys.
    """
    o_k = i_k * BK + tl.arange(0, BK)
    o_c = i_c * BC + tl.arange(0, BC)
    m_k, m_c = o_k < K, o_c < N
    o_kc, m_kc = o_k[:, None] * N + o_c[None, :], m_k[:, None] & m_c[None, :]
    b_s = tl.zeros([BK, BC], dtype=tl.float32)
    trace = 0.0
    if HAS_INIT:
        b_s += tl.load(s_init + i_nh * K * N + o_kc, mask=m_kc, other=0.0).to(tl.float32)
    if h_low is not None:
        o_all = tl.arange(0, N_K * BK)
        least = tl.min(tl.load(lamb + i_h * K + o_all, mask=o_all < K, other=float("inf")).to(tl.float32))
        if HAS_INIT:
            trace += tl.sum(tl.load(s_init + i_nh * K * N + o_all * (K + 1), mask=o_all < K, other=0.0).to(tl.float32))

    for i_t in range(0, n_chunks):
        i_row = (bos + i_t * BT) * H + i_h
        n_left = T - i_t * BT
        i_state = (i_s + i_t) * H + i_h
        if h_low is not None:
            b_root = inverse_root(lamb + i_h * K, o_k, K)[:, None] * inverse_root(lamb + i_h * K, o_c, K)[None, :]
            b_e = exponent(trace / least) + 1
            b_high, b_low = halves(b_s * power(-b_e) * b_root)
            tl.store(s + i_state * K * N + o_kc, b_high, mask=m_kc)
            tl.store(h_low + i_state * K * N + o_kc, b_low, mask=m_kc)
            if (i_k == 0) & (i_c == 0):
                tl.store(h_unit + i_state, power(b_e) + (trace - trace))
        else:
            p_scale = None if s_scale is None else place(s_scale, i_state, i_k, i_c, K, N, BK, BC)
            store_block(s + i_state * K * N + o_kc, p_scale, b_s, m_kc)

        b_last = tl.load(g + i_row + (tl.minimum(n_left, BT) - 1) * H).to(tl.float32)
        b_s *= exp2(b_last)
        trace *= exp2(b_last)
        for i_p in range(0, BT, BP):
            o_t = i_p + tl.arange(0, BP)
            m_t = o_t < n_left
            b_gt = tl.load(g + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
            b_beta = tl.load(beta + i_row + o_t * H, mask=m_t, other=0.0).to(tl.float32)
            b_weight = tl.where(m_t, exp2(b_last - b_gt) * b_beta, 0.0)
            if h_low is not None:
                b_norm = tl.load(norm + i_row + o_t * H, mask=m_t, other=0.0)
                trace += tl.sum(b_weight * b_norm * b_norm)
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
    k, v, g, beta, lamb, norm, h_kk, h_low, h_unit, h_kv, h_kv_scale, h_kk_init, h_kv_init, h_kk_final, h_kv_final,
    cu_seqlens, chunk_offsets, T, size,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
    BP: tl.constexpr, N_K: tl.constexpr, N_CK: tl.constexpr, N_CV: tl.constexpr, PRECISION: tl.constexpr, HAS_INIT: tl.constexpr,
    IS_VARLEN: tl.constexpr,
):  # fmt: skip
    """The states H, of keys with keys, and G, of keys with values, before each chunk: N_CK blocks of columns are H's, N_CV are G's."""
    i_k, i_c, i_nh, i_h, bos, T, n_chunks, i_s = locate_block(
        cu_seqlens, chunk_offsets, T, H, BT, N_K, N_CK + N_CV, IS_VARLEN
    )
    if i_c < N_CK:
        accumulate(k, k, g, beta, h_kk, None, h_kk_init, h_kk_final, lamb, norm, h_low, h_unit, i_k, i_c, i_nh, i_h, bos, T, n_chunks,
                   i_s, H, K, K, BT, BK, BC, BP, N_K, PRECISION, HAS_INIT)  # fmt: skip
    else:
        accumulate(k, v, g, beta, h_kv, h_kv_scale, h_kv_init, h_kv_final, None, None, None, None, i_k, i_c - N_CK, i_nh, i_h, bos, T,
                   n_chunks, i_s, H, K, V, BT, BK, BC, BP, N_K, PRECISION, HAS_INIT)  # fmt: skip


@triton.jit
def accumulate_back(
    a, c, sign, g, s, s_scale, s_final, ds, ds_scale, ds_final, ds_init, inner, lamb, h_unit, i_k, i_c, i_part, i_nh, i_h, bos, T,
    n_chunks, i_s,
    H: tl.constexpr, K: tl.constexpr, N: tl.constexpr, X: tl.constexpr, C: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, N_PARTS: tl.constexpr, PRECISION: tl.constexpr, HAS_FINAL: tl.constexpr, HAS_INIT: tl.constexpr,
):  # fmt: skip
    """dS <- exp(a_C) dS + sign (A * exp(a))'C for one block [BK, BC] of dS [K, N], from the last chunk to the first.

    Rows of A [., H, X] and of C [., H, C] are as `load_rows` takes them.
    """
    o_k = i_k * BK + tl.arange(0, BK)
    o_c = i_c * BC + tl.arange(0, BC)
    m_k, m_c = o_k < K, o_c < N
    o_kc, m_kc = o_k[:, None] * N + o_c[None, :], m_k[:, None] & m_c[None, :]
    b_ds = tl.zeros([BK, BC], dtype=tl.float32)
    if HAS_FINAL:
        b_ds += tl.load(ds_final + i_nh * K * N + o_kc, mask=m_kc, other=0.0).to(tl.float32)

    for i_back in range(0, n_chunks):
        i_t = n_chunks - 1 - i_back
        i_row = (bos + i_t * BT) * H + i_h
        n_left = T - i_t * BT
        i_state = (i_s + i_t) * H + i_h
        p_scale = None if ds_scale is None else place(ds_scale, i_state, i_k, i_c, K, N, BK, BC)
        store_block(ds + i_state * K * N + o_kc, p_scale, b_ds, m_kc)
        # The state after a chunk is the one stored before the next, or the final one.
        if i_back == 0:
            b_s = tl.load(s_final + i_nh * K * N + o_kc, mask=m_kc, other=0.0)
        else:
            b_s = tl.load(s + (i_state + H) * K * N + o_kc, mask=m_kc, other=0.0).to(tl.float32)
            if h_unit is not None:  # the high part of H is all that a sum over its entries needs
                b_root = inverse_root(lamb + i_h * K, o_k, K)[:, None] * inverse_root(lamb + i_h * K, o_c, K)[None, :]
                b_s *= tl.load(h_unit + i_state + H) / b_root
            if s_scale is not None:
                b_s *= tl.load(place(s_scale, i_state + H, i_k, i_c, K, N, BK, BC))
        tl.store(inner + i_state * N_PARTS + i_part, tl.sum(b_ds * b_s))

        b_ds *= exp2(tl.load(g + i_row + (tl.minimum(n_left, BT) - 1) * H).to(tl.float32))
        for i_p in range(0, BT, BP):
            o_t = i_p + tl.arange(0, BP)
            b_decay = sign * exp2(tl.load(g + i_row + o_t * H, mask=o_t < n_left, other=0.0).to(tl.float32))
            b_a, b_a_scale = load_rows(a + i_row * X, o_t, o_k, n_left, H, K, X)
            b_c, b_c_scale = load_rows(c + i_row * C, o_t, o_c, n_left, H, N, C)
            b_a = b_a.to(tl.float32) * (b_a_scale * b_c_scale * b_decay[:, None])
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
    x, y, do, g, lamb, h_kk, h_unit, h_kv, h_kv_scale, h_kk_final, h_kv_final, dh_kk_final, dh_kv_final,
    dh_kk, dh_kk_scale, dh_kv, dh_kv_scale, dh_kk_init, dh_kv_init, inner, cu_seqlens, chunk_offsets, T, size,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, X: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
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
        accumulate_back(
            y, x, -1.0, g, h_kk, None, h_kk_final, dh_kk, dh_kk_scale, dh_kk_final, dh_kk_init, inner, lamb, h_unit, i_k, i_c, i_part,
            i_nh, i_h, bos, T, n_chunks, i_s, H, K, K, X, X, BT, BK, BC, BP, N_PARTS, PRECISION, HAS_DH_KK, HAS_INIT,
        )  # fmt: skip
    else:
        accumulate_back(
            x, do, 1.0, g, h_kv, h_kv_scale, h_kv_final, dh_kv, dh_kv_scale, dh_kv_final, dh_kv_init, inner, lamb, None, i_k,
            i_c - N_CK, i_part, i_nh, i_h, bos, T, n_chunks, i_s, H, K, V, X, V, BT, BK, BC, BP, N_PARTS, PRECISION, HAS_DH_KV, HAS_INIT,
        )  # fmt: skip
