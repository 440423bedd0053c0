# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOptionalSubscript=false, reportReturnType=false
# (device code: types mean something else to Triton)
"""What the kernels share, as Triton device functions: where a tile lies, products in chosen precisions, 16-bit storage, decays.

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
def within(o_n, N: tl.constexpr):
    """Which of the N channels these offsets from 0 are; of a power of two all, whatever has been added that the compiler cannot foresee."""
    if o_n.shape[0] == N:
        return tl.full([N], True, tl.int1)
    else:
        return o_n < N


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
def exponent(b_largest):
    """e with 2^e <= largest < 2^(e + 1), int32; at least -126, of zero as well, and at most 126."""
    return tl.minimum(tl.maximum((b_largest.to(tl.int32, bitcast=True) >> 23) - 127, -126), 126)


@triton.jit
def power(b_e):
    """2^e, exactly."""
    return ((b_e + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def scale_rows(b_a):
    """Rows with largest entry between 1 and 2, and the power of two to multiply them by to have them back [., 1]."""
    b_e = exponent(tl.max(tl.abs(b_a), axis=1, keep_dims=True))
    return b_a * power(-b_e), power(b_e)


@triton.jit
def row_scale(x, o_t, T, H: tl.constexpr, K: tl.constexpr, X: tl.constexpr):
    """The power of two of each row of x [., H, X], whose exponent is in column K [., 1]."""
    return power(tl.load(x + o_t[:, None] * (H * X) + K, mask=(o_t < T)[:, None], other=0.0).to(tl.int32))


@triton.jit
def load_rows(x, o_t, o_k, T, H: tl.constexpr, K: tl.constexpr, X: tl.constexpr):
    """Rows of x [., H, X] and what to multiply them by. X = K: as they are, 1. X > K: they are over 2^e, with e in column K."""
    m_t = (o_t < T)[:, None]
    b_x = tl.load(x + o_t[:, None] * (H * X) + o_k[None, :], mask=m_t & within(o_k, K)[None, :], other=0.0)
    if X > K:
        return b_x, row_scale(x, o_t, T, H, K, X)
    else:
        return b_x, 1.0


@triton.jit
def store_rows(x, b_x, o_t, o_k, T, H: tl.constexpr, K: tl.constexpr, X: tl.constexpr):
    """What `load_rows` reads, of float16; returns the rows as they are stored, and what to multiply them by [., 1]."""
    m_t = o_t < T
    b_e = exponent(tl.max(tl.abs(b_x), axis=1, keep_dims=True))
    b_x = (b_x * power(-b_e)).to(tl.float16)
    tl.store(x + o_t[:, None] * (H * X) + o_k[None, :], b_x, mask=m_t[:, None] & within(o_k, K)[None, :])
    tl.store(x + o_t[:, None] * (H * X) + K, b_e.to(tl.float16), mask=m_t[:, None])
    return b_x, power(b_e)


@triton.jit
def halves(b_a):
    """float32 entries of at most some thousands as float16 parts: a = high + low / 2048, 22 bits of each entry."""
    b_high = b_a.to(tl.float16)
    return b_high, ((b_a - b_high.to(tl.float32)) * 2048.0).to(tl.float16)


@triton.jit
def inverse_root(lamb, o_k, K: tl.constexpr):
    """lamb^-1/2; 1 beyond the last channel."""
    return tl.rsqrt(tl.load(lamb + o_k, mask=within(o_k, K), other=1.0).to(tl.float32))


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
def decay_mask(g, beta, b_gt, o_t, o_s, T, H: tl.constexpr):
    """M_ts = exp2(a_t - a_s) beta_s for s <= t, else 0  [BR, BS]."""
    m_s = o_s < T
    b_gs = tl.load(g + o_s * H, mask=m_s, other=0.0).to(tl.float32)
    b_beta = tl.load(beta + o_s * H, mask=m_s, other=0.0).to(tl.float32)
    m_causal = (o_t[:, None] >= o_s[None, :]) & (o_t < T)[:, None] & m_s[None, :]
    return tl.where(m_causal, exp2(tl.minimum(b_gt[:, None] - b_gs[None, :], 0.0)) * b_beta[None, :], 0.0)


@triton.jit
def poison(b_o, b_c, o_t, o_s):
    """b_o [BR, BN], NaN in each column from the first row on at which its column of c [BS, BN] holds a NaN or infinity."""
    m_finite = tl.abs(b_c.to(tl.float32)) < float("inf")
    if tl.sum(tl.where(m_finite, 0, 1)) > 0:
        b_touched = tl.where(o_t[:, None] >= o_s[None, :], 1.0, 0.0).to(tl.float16)
        b_touched = tl.dot(b_touched, tl.where(m_finite, 0.0, 1.0).to(tl.float16))
        b_o += tl.where(b_touched > 0.0, float("nan"), 0.0)
    return b_o
