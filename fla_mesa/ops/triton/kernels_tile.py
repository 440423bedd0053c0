# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false
# (device code: types mean something else to Triton)
"""What the kernels share, as Triton device functions: where a tile lies, products in chosen precisions, attention over a chunk.

Names: `b_` a block in registers, `p_` pointers, `i_` an index, `o_` offsets, `m_` a mask. Sizes: BT positions a chunk, BR rows
(positions) a tile, BK >= K a power of two, BS and BD the blocks in which keys and the contracted dimension are read.
"""

import triton
import triton.language as tl
from fla.ops.utils.op import exp2


@triton.jit
def scrub(b_a):
    """A block without its infinities and NaN: 0 * NaN must not reach rows that come before them."""
    return tl.where(tl.abs(b_a.to(tl.float32)) < float("inf"), b_a, 0.0).to(b_a.dtype)


@triton.jit
def dot(b_a, b_b, b_acc, PRECISION: tl.constexpr):
    """acc + a b. Two operands of the same 16-bit type multiply exactly; anything else as float32 in PRECISION."""
    if b_a.dtype == b_b.dtype and b_a.dtype != tl.float32:
        return tl.dot(b_a, b_b, b_acc)
    elif PRECISION == "bf16x3" or PRECISION == "bf16":
        b_high, b_low = split(b_b, PRECISION)
        return dot_split(b_a, b_high, b_low, b_acc, PRECISION, b_b.dtype != tl.bfloat16)
    elif PRECISION == "tf32x3" and b_a.dtype == tl.float32 and b_b.dtype == tl.bfloat16:
        # Three parts of 8 bits hold all of a float32, and the other operand is one: better, and half the cost.
        b_high, b_rest = split_once(b_a)
        b_middle, b_rest = split_once(b_rest)
        b_acc = tl.dot(b_rest.to(tl.bfloat16), b_b, b_acc)
        b_acc = tl.dot(b_middle, b_b, b_acc)
        return tl.dot(b_high, b_b, b_acc)
    elif PRECISION == "tf32x3" and b_a.dtype == tl.bfloat16 and b_b.dtype == tl.float32:
        b_high, b_rest = split_once(b_b)
        b_middle, b_rest = split_once(b_rest)
        b_acc = tl.dot(b_a, b_rest.to(tl.bfloat16), b_acc)
        b_acc = tl.dot(b_a, b_middle, b_acc)
        return tl.dot(b_a, b_high, b_acc)
    else:
        return tl.dot(b_a.to(tl.float32), b_b.to(tl.float32), b_acc, input_precision=PRECISION)


@triton.jit
def split_once(b_a):
    """The bfloat16 next to a block, and what it leaves in float32."""
    b_high = b_a.to(tl.bfloat16)
    return b_high, b_a.to(tl.float32) - b_high.to(tl.float32)


@triton.jit
def split(b_b, PRECISION: tl.constexpr):
    """A right operand, which may stay in shared memory for several products, as (high, low) parts where PRECISION splits it."""
    if PRECISION == "bf16x3" or PRECISION == "bf16":
        b_high, b_low = split_once(b_b)
        return b_high, b_low.to(tl.bfloat16)
    else:
        return b_b.to(tl.float32), b_b.to(tl.float32)


@triton.jit
def dot_split(b_a, b_high, b_low, b_acc, PRECISION: tl.constexpr, LOW: tl.constexpr):
    """acc + a (high + low); without LOW the low part is known to be zero. Of a bfloat16 `a`, so is that one's."""
    if PRECISION == "bf16x3":
        b_a_high, b_a_low = split_once(b_a)
        if b_a.dtype != tl.bfloat16:
            b_acc = tl.dot(b_a_low.to(tl.bfloat16), b_high, b_acc)
        if LOW:
            b_acc = tl.dot(b_a_high, b_low, b_acc)
        return tl.dot(b_a_high, b_high, b_acc)
    elif PRECISION == "bf16":
        return tl.dot(b_a.to(tl.bfloat16), b_high, b_acc)
    else:
        return tl.dot(b_a.to(tl.float32), b_high, b_acc, input_precision=PRECISION)


@triton.jit
def locate(i_p, cu_seqlens, chunk_indices, T, n_chunks, H: tl.constexpr, BT: tl.constexpr, N_SUB: tl.constexpr,
           IS_VARLEN: tl.constexpr):  # fmt: skip
    """Number of a tile -> (tile within its chunk, index of the chunk's stored state, head, first position of the chunk, its length).

    They are numbered [batch * head, chunk, tile] with the tile fastest: neighbours share a state in the cache.
    Everything that follows counts positions from the start of the chunk, in 32 bits.
    """
    i_p = i_p.to(tl.int64)
    i_r = (i_p % N_SUB).to(tl.int32)
    i_c = (i_p // N_SUB) % n_chunks
    i_bh = i_p // (N_SUB * n_chunks)
    i_b, i_h = i_bh // H, i_bh % H
    if IS_VARLEN:
        i_n = tl.load(chunk_indices + i_c * 2).to(tl.int64)
        i_t = tl.load(chunk_indices + i_c * 2 + 1).to(tl.int64)
        bos = tl.load(cu_seqlens + i_n).to(tl.int64)
        eos = tl.load(cu_seqlens + i_n + 1).to(tl.int64)
        i_s = i_c
    else:
        i_t = i_c
        bos = i_b * T
        eos = bos + T
        i_s = i_b * n_chunks + i_c
    first = bos + i_t * BT
    return i_r, i_s, i_h, first, tl.minimum(eos - first, BT).to(tl.int32)


@triton.jit
def attend(
    a, lda, b, ldb, c, ldc, w, w_d, w_n,  # pointers of this chunk and head, and their strides
    g, beta, o_t, o_n, T, N, i_zero,
    H: tl.constexpr, D: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr, BS: tl.constexpr,
    BD: tl.constexpr, PRECISION: tl.constexpr, MARK: tl.constexpr,
):  # fmt: skip
    """exp2(a_t) W'a_t + sum_{s<=t} M_ts (a_t'b_s) c_s  [BR, BN]: reads everything block by block from memory.

    One linear attention for the rows o_t of a chunk of T positions and the columns o_n: W [D, N] is the state before the
    chunk, b [., D] what is compared with a [., D], c [., N] what is summed. With MARK a NaN or infinity in c makes its own
    column NaN from its row on; otherwise the caller has made beta NaN there.
    """
    m_t = o_t < T
    m_n = o_n < N
    b_gt = tl.load(g + o_t * H, mask=m_t, other=0.0).to(tl.float32)
    b_acc = tl.zeros([BR, BN], dtype=tl.float32)
    for i_d in range(i_zero, D, BD):
        o_d = i_d + tl.arange(0, BD)
        m_d = o_d < D
        b_a = tl.load(a + o_t[:, None] * lda + o_d[None, :], mask=m_t[:, None] & m_d[None, :], other=0.0)
        b_w = tl.load(w + o_d[:, None] * w_d + o_n[None, :] * w_n, mask=m_d[:, None] & m_n[None, :], other=0.0)
        b_acc = dot(b_a, b_w, b_acc, PRECISION)
    b_acc *= exp2(b_gt)[:, None]
    # No key after the tile's last row counts: half of the work in the first tile of two.
    for i_s in range(i_zero, tl.minimum(tl.max(o_t) + 1, T), BS):
        o_s = i_s + tl.arange(0, BS)
        m_s = o_s < T
        b_s = tl.zeros([BR, BS], dtype=tl.float32)
        b_c = tl.load(c + o_s[:, None] * ldc + o_n[None, :], mask=m_s[:, None] & m_n[None, :], other=0.0)
        if MARK:
            m_finite = tl.abs(b_c.to(tl.float32)) < float("inf")
            if tl.sum(tl.where(m_finite, 0, 1)) > 0:
                b_touched = tl.where(o_t[:, None] >= o_s[None, :], 1.0, 0.0).to(tl.float16)
                b_touched = tl.dot(b_touched, tl.where(m_finite, 0.0, 1.0).to(tl.float16))
                b_acc += tl.where(b_touched > 0.0, float("nan"), 0.0)
        b_c = scrub(b_c)
        for i_d in range(i_zero, D, BD):
            o_d = i_d + tl.arange(0, BD)
            m_d = o_d < D
            b_a = tl.load(a + o_t[:, None] * lda + o_d[None, :], mask=m_t[:, None] & m_d[None, :], other=0.0)
            b_b = tl.load(b + o_s[:, None] * ldb + o_d[None, :], mask=m_s[:, None] & m_d[None, :], other=0.0)
            b_s = dot(b_a, tl.trans(scrub(b_b)), b_s, PRECISION)
        b_m = decay_mask(g, beta, b_gt, o_t, o_s, T, H)
        b_acc = dot(b_s * b_m, b_c, b_acc, PRECISION)
    return b_acc


@triton.jit
def decay_mask(g, beta, b_gt, o_t, o_s, T, H: tl.constexpr):
    """M_ts = exp2(a_t - a_s) beta_s for s <= t, else 0  [BR, BS]."""
    m_s = o_s < T
    b_gs = tl.load(g + o_s * H, mask=m_s, other=0.0).to(tl.float32)
    b_beta = tl.load(beta + o_s * H, mask=m_s, other=0.0).to(tl.float32)
    m_causal = (o_t[:, None] >= o_s[None, :]) & (o_t < T)[:, None] & m_s[None, :]
    return tl.where(m_causal, exp2(tl.minimum(b_gt[:, None] - b_gs[None, :], 0.0)) * b_beta[None, :], 0.0)


@triton.jit
def diagonal(
    k, w, g, beta, o_t, o_k, T,  # pointers of this chunk and head
    H: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """diag(H_t) for the rows o_t  [BR, BK]: exp2(a_t) diag(W) + sum_{s<=t} M_ts k_s * k_s , W the state before the chunk."""
    m_k = o_k < K
    b_gt = tl.load(g + o_t * H, mask=o_t < T, other=0.0).to(tl.float32)
    b_acc = exp2(b_gt)[:, None] * tl.load(w + o_k * (K + 1), mask=m_k, other=0.0)[None, :]
    for i_s in range(0, tl.minimum(tl.max(o_t) + 1, T), BS):
        o_s = i_s + tl.arange(0, BS)
        b_k = tl.load(k + o_s[:, None] * (H * K) + o_k[None, :], mask=(o_s < T)[:, None] & m_k[None, :], other=0.0)
        b_k = scrub(b_k).to(tl.float32)
        b_acc = dot(decay_mask(g, beta, b_gt, o_t, o_s, T, H), b_k * b_k, b_acc, PRECISION)
    return b_acc


@triton.jit
def inverse(b_a):
    """1 / a where a is a normal number above zero, 1 elsewhere: there is nothing to scale there."""
    return 1.0 / tl.where(b_a > 1.2e-38, b_a, 1.0)


@triton.jit
def scale_rows(b_b):
    """Rows with largest entry 1, and what to multiply them by to have them back [BR, 1]."""
    b_inverse = inverse(tl.max(tl.abs(b_b), axis=1, keep_dims=True))
    return b_b * b_inverse, 1.0 / b_inverse
