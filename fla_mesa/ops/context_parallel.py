r"""Context parallelism: one sequence, or one packed row of sequences, split over the ranks of a process group.

Rank r holds the r-th of P shards of equal length. The Mesa op reaches from one shard into the next through its states
``S = [H | G] [H, K, K + V]`` alone, and these decay by a scalar a head, so that no K x K transition has to be sent:

    decay_r = exp(sum of g over the rank's last sequence)                              [H]
    U_r     = sum over that sequence of exp(sum of later g) beta_t k_t [k_t | v_t]     [H, K, K + V], one product, no solve

    forward    all-gather (decay, U);  S_0 = 0,  S_{r+1} = decay_r S_r + U_r;  the first local sequence starts from S_r
    backward   the local op gives dS_r (its second solve needs no other rank);  all-gather dS;  D_{P-1} = 0,
               D_r = dS_{r+1} + decay_{r+1} D_{r+1} is the gradient of U_r, and <S_r, D_r> that of decay_r

Both chains break where a sequence starts or ends: a rank reads only from the ranks that its first sequence began on, and its last
sequence only hears from the ranks that it goes on to.

What a rank knows about the whole row stands in a record whose fields have the names and meanings of ``fla.ops.cp.FLACPContext`` in its
contiguous layout, so that either can be passed. A rule whose only state is G (linear attention) takes the same way without H.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name from torch 2.13 on, and before
BLOCK = 4096  # positions whose float32 copies exist at a time


class ContextLike(Protocol):
    """The fields that are read from a context: :class:`CPContext`, fla's ``FLACPContext``, or anything that has them."""

    @property
    def group(self) -> Any: ...
    @property
    def cu_seqlens(self) -> torch.Tensor | None: ...
    @property
    def cu_seqlens_cpu(self) -> torch.Tensor | None: ...
    @property
    def pre_num_ranks(self) -> int | None: ...
    @property
    def post_num_ranks(self) -> int | None: ...
    @property
    def pre_num_conv_tokens(self) -> int | None: ...
    @property
    def layout(self) -> str: ...


@dataclass(frozen=True)
class CPContext:
    """The position of one rank's shard in the whole row. Made by :func:`make_cp_context`.

    Attributes:
        group: The process group that the row is cut over.
        cu_seqlens: Boundaries of the sequences inside the shard ``[N + 1]``, from 0 to the length of the shard, int32.
        cu_seqlens_cpu: A copy of them on the CPU.
        pre_num_ranks: How many ranks before this one the first local sequence began on; 0 if it starts with the shard.
        post_num_ranks: How many ranks after this one the last local sequence goes on to.
        pre_num_conv_tokens: How many positions of the first local sequence lie on ranks before this one.
        layout: Always ``"contiguous"``; there since fla's record has it.
    """

    group: Any
    cu_seqlens: torch.Tensor
    cu_seqlens_cpu: torch.Tensor
    pre_num_ranks: int
    post_num_ranks: int
    pre_num_conv_tokens: int
    layout: str = "contiguous"


def make_cp_context(
    cu_seqlens: torch.Tensor, group: Any = None, *, cu_seqlens_cpu: torch.Tensor | None = None
) -> CPContext:
    """This rank's context, on any device, for the ``cp_context`` of the op, the layers and the models.

    Args:
        cu_seqlens: Boundaries ``[N + 1]`` of the sequences in the WHOLE row, from 0 to T, increasing; int32 or int64; the same on every
            rank. ``torch.tensor([0, T])`` for one sequence. T must be a multiple of the number of ranks.
        group: The process group; None for the default group, as in ``torch.distributed``.
        cu_seqlens_cpu: A copy of them on the CPU, which saves a synchronisation on GPUs.

    Returns:
        The record, its ``cu_seqlens`` on the device of the argument.

    Raises:
        TypeError: cu_seqlens is no integer tensor.
        ValueError: It does not begin at 0 or does not increase, T is no multiple of the number of ranks, or this process is not in the
            group.
        RuntimeError: There is no process group.
    """
    if not isinstance(cu_seqlens, torch.Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens must be an int32 or int64 tensor; got {_name(cu_seqlens)}")
    bounds = (cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu).tolist()
    if cu_seqlens.ndim != 1 or len(bounds) < 2 or bounds[0] != 0 or any(b <= a for a, b in itertools.pairwise(bounds)):
        raise ValueError(f"cu_seqlens must hold the boundaries of the whole row, [0, ..., T], increasing; got {bounds}")
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("context parallelism needs a process group: call torch.distributed.init_process_group first")
    group = dist.group.WORLD if group is None else group
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    if rank < 0:
        raise ValueError("group must be a process group that this process is in; it is not")
    T = bounds[-1]
    if T % size:
        raise ValueError(
            f"cu_seqlens must end at a multiple of the {size} ranks of the group, so that every shard is of the same length; got T = {T}:"
            f" append {-T % size} positions as a sequence of their own, with labels of -100"
        )
    length = T // size
    start, end = rank * length, (rank + 1) * length
    inside = [b for b in bounds if start < b < end]
    first_begins = max(b for b in bounds if b <= start)
    last_ends = min(b for b in bounds if b >= end)
    local = torch.tensor([0, *(b - start for b in inside), length], dtype=torch.int32)
    return CPContext(
        group=group,
        cu_seqlens=local.to(cu_seqlens.device),
        cu_seqlens_cpu=local,
        pre_num_ranks=rank - first_begins // length,
        post_num_ranks=(last_ends - 1) // length - rank,
        pre_num_conv_tokens=start - first_begins,
    )


def take_shard(x: torch.Tensor, cp_context: ContextLike, dim: int = 1) -> torch.Tensor:
    """This rank's shard of a tensor ``[..., T, ...]`` that holds the whole row along ``dim``.

    Raises:
        ValueError: The size along ``dim`` is no multiple of the number of ranks.
    """
    check_context(cp_context)
    size = dist.get_world_size(cp_context.group)
    if x.shape[dim] % size:
        raise ValueError(
            f"x must hold a multiple of {size} positions, one shard a rank; got {x.shape[dim]} along dim {dim}"
        )
    return x.chunk(size, dim)[dist.get_rank(cp_context.group)]


def _name(x: object) -> str:
    return (
        f"a {x.dtype} tensor of shape {list(x.shape)}"
        if isinstance(x, torch.Tensor)
        else f"{x!r} of type {type(x).__name__}"
    )


def check_context(cp_context: ContextLike) -> None:
    """Checks that a context belongs to this rank and is contiguous.

    Raises:
        TypeError: It is not a context.
        ValueError: It is incomplete, not contiguous, or belongs to another rank or group.
    """
    missing = [name for name in CPContext.__dataclass_fields__ if not hasattr(cp_context, name)]
    if missing:
        raise TypeError(
            f"cp_context must come from fla_mesa.ops.make_cp_context or be fla's FLACPContext; got {_name(cp_context)} without "
            f"{', '.join(missing)}"
        )
    if cp_context.layout != "contiguous":
        raise ValueError(
            f"cp_context.layout must be 'contiguous', one shard a rank in order; got {cp_context.layout!r}"
        )
    if cp_context.group is None:
        raise ValueError(
            "cp_context.group must be a process group; got None (on a single device, pass cu_seqlens instead of cp_context)"
        )
    for name in ("cu_seqlens", "pre_num_ranks", "post_num_ranks", "pre_num_conv_tokens"):
        if getattr(cp_context, name) is None:
            raise ValueError(f"cp_context.{name} must be set, as make_cp_context does; got None")
    size, rank = dist.get_world_size(cp_context.group), dist.get_rank(cp_context.group)
    before, after = cp_context.pre_num_ranks, cp_context.post_num_ranks
    assert before is not None and after is not None
    if not (0 <= before <= rank and 0 <= after < size - rank):
        raise ValueError(
            f"cp_context belongs to another rank or group: its sequences reach {before} ranks back and {after} ahead, but this is"
            f" rank {rank} of {size}"
        )


def check_call(
    cp_context: ContextLike,
    shape: Sequence[int],
    name: str,
    cu_seqlens: torch.Tensor | None,
    **refused: object,
) -> None:
    """As :func:`check_context`; also checks that the shape is this rank's shard and that no argument excludes a context.

    Args:
        cp_context: The context.
        shape: ``[1, T_local, ...]`` of the input that is sharded.
        name: Its name.
        cu_seqlens: As the caller got it: None, or the context's own.
        refused: Arguments of the caller that cannot be combined with a context, by name.

    Raises:
        TypeError: As :func:`check_context`.
        ValueError: As :func:`check_context`, or the shape or an argument does not go with the context.
    """
    check_context(cp_context)
    for argument, value in refused.items():
        if value is not None and value is not False:
            raise ValueError(f"{argument} cannot be combined with cp_context; got {_name(value)}")
    if cu_seqlens is not None and cu_seqlens is not cp_context.cu_seqlens:
        raise ValueError("cu_seqlens comes with cp_context, which holds the boundaries inside the shard: leave it out")
    boundaries = cp_context.cu_seqlens if cp_context.cu_seqlens_cpu is None else cp_context.cu_seqlens_cpu
    assert boundaries is not None
    length = int(boundaries[-1])
    if len(shape) > 1 and tuple(shape[:2]) != (1, length):
        raise ValueError(
            f"{name} must be this rank's shard, [1, {length}, ...], with cp_context; got shape {list(shape)} (pack a batch into one row)"
        )


def _gather(x: torch.Tensor, group: Any) -> torch.Tensor:
    """``[...] -> [P, ...]``, in the order of the ranks."""
    x = x.contiguous()
    if dist.get_world_size(group) == 1:
        return x[None]
    out = x.new_empty(dist.get_world_size(group), *x.shape)
    _all_gather(out.flatten(0, 1), x, group=group)
    return out


def _weights(
    g: torch.Tensor, beta: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``g, beta [T, H]`` of one sequence: the total decay [H], the decay of each position [T, H], and that times beta.

    Sums run from the end: a gate that forgets all (``g = -inf``) then gives exp(-inf) = 0 and never inf - inf.
    """
    later = g.double().flip(0).cumsum(0).flip(0)  # sum of g from t on; float64, as everywhere in the op
    left = torch.cat([later[1:], torch.zeros_like(later[:1])]).exp().to(dtype)
    return later[0].exp().to(dtype), left, left * beta.to(dtype)


class _StateBefore(torch.autograd.Function):
    """``k [1, T, H, K], v [1, T, H, V], g, beta [1, T, H]`` of a shard to the state before it.

    It is ``[H | G] [H, K, K + V]``; without ``with_keys`` only ``G [H, K, V]``.
    """

    @staticmethod
    def forward(ctx, k, v, g, beta, context: ContextLike, start: int, with_keys: bool):
        dtype = torch.promote_types(k.dtype, torch.float32)
        (H, K), D = k.shape[2:], v.shape[-1] + (k.shape[-1] if with_keys else 0)
        decay, update = k.new_zeros(H, dtype=dtype), k.new_zeros(H, K, D, dtype=dtype)
        if context.post_num_ranks:  # else nobody asks for them
            decay, _, weight = _weights(g[0, start:], beta[0, start:], dtype)
            for k_, v_, w in zip(*(x.split(BLOCK) for x in (k[0, start:], v[0, start:], weight)), strict=True):
                k_, v_ = k_.to(dtype), v_.to(dtype)
                rows = torch.cat([k_, v_], -1) if with_keys else v_
                update += torch.einsum("thk,thd->hkd", k_ * w[..., None], rows)
        gathered = _gather(torch.cat([decay[:, None], update.flatten(1)], 1), context.group)  # [P, H, 1 + K D]
        decays, rank = gathered[:, :, 0, None, None], dist.get_rank(context.group)
        state = torch.zeros_like(update)
        for r in range(rank - (context.pre_num_ranks or 0), rank):
            state = decays[r] * state + gathered[r, :, 1:].view_as(state)
        ctx.save_for_backward(k, v, g, beta, state, decays.clone())
        ctx.context, ctx.start, ctx.with_keys = context, start, with_keys
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx, d_state):
        with torch.autocast(d_state.device.type, enabled=False):
            return *_StateBefore._gradients(ctx, d_state), None, None, None

    @staticmethod
    def _gradients(ctx, d_state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gradients of k, v, g and beta."""
        k, v, g, beta, state, decays = ctx.saved_tensors
        context, start, K, V = ctx.context, ctx.start, k.shape[-1], v.shape[-1]
        gathered = _gather(d_state, context.group)  # [P, H, K, D]
        rank, ahead = dist.get_rank(context.group), context.post_num_ranks
        dk, dv, dg, dbeta = (torch.zeros_like(x) for x in (k, v, g, beta))
        if ahead:
            after = torch.zeros_like(d_state)  # gradient of the state after this rank
            for r in range(rank + ahead, rank, -1):
                after = gathered[r] + decays[r] * after
            decay, left, weight = _weights(g[0, start:], beta[0, start:], after.dtype)
            d_weight = torch.empty_like(weight)
            for t in range(start, k.shape[1], BLOCK):
                place, part = (0, slice(t, t + BLOCK)), slice(t - start, t - start + BLOCK)
                k_, v_, w = k[place].to(after.dtype), v[place].to(after.dtype), weight[part, :, None]
                d_keys = torch.einsum("hkd,thd->thk", after, torch.cat([k_, v_], -1) if ctx.with_keys else v_)
                d_rows = torch.einsum("hkd,thk->thd", after, k_)
                d_weight[part] = (k_ * d_keys).sum(-1)
                dk[place] = w * (d_keys + d_rows[..., :K] if ctx.with_keys else d_keys)
                dv[place] = w * d_rows[..., -V:]
            dbeta[0, start:] = left * d_weight
            d_left = (weight * d_weight).double()
            d_gate = d_left.cumsum(0) - d_left  # g_s stands in what is left of the positions before s
            if start == 0:  # and in what is left of the state before the shard, if the last sequence is the first
                d_gate += decay * (state * after).sum((1, 2))
            dg[0, start:] = d_gate
        return dk, dv, dg, dbeta


def _states_before(
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    cp_context: ContextLike,
    with_keys: bool,
) -> torch.Tensor:
    """The initial states of the local sequences, ``[N, H, K, D]``."""
    boundaries = cp_context.cu_seqlens if cp_context.cu_seqlens_cpu is None else cp_context.cu_seqlens_cpu
    assert boundaries is not None
    with torch.autocast(k.device.type, enabled=False):
        state: Any = _StateBefore.apply(k, v, g, beta, cp_context, int(boundaries[-2]), with_keys)
    # Only the first sequence has a past. The others get their zeros behind the same node of the graph on every rank: who skipped it
    # would not take part in its backward collective.
    return torch.cat([state[None], state.new_zeros(len(boundaries) - 2, *state.shape)])


def states_before(
    k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, cp_context: ContextLike
) -> tuple[torch.Tensor, torch.Tensor]:
    """The initial states of the local sequences, ``h_kk [N, H, K, K]`` and ``h_kv [N, H, K, V]``, float32 (float64 for float64 k).

    A collective: every rank of the group has to call it, and in the same order as its other collectives, forward and backward.
    """
    states, K = _states_before(k, v, g, beta, cp_context, with_keys=True), k.shape[-1]
    return states[..., :K], states[..., K:]


def linear_state_before(
    k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor | None, cp_context: ContextLike
) -> torch.Tensor:
    """The same for linear attention, ``S_t = exp(g_t) S_{t-1} + beta_t k_t v_t'``, beta 1 if None: ``[N, H, K, V]``."""
    return _states_before(k, v, g, torch.ones_like(g) if beta is None else beta, cp_context, with_keys=False)


class _RowsBefore(torch.autograd.Function):
    """``x [1, T, C]`` of a shard to the ``count`` rows ``[count, C]`` before it, zero if not part of its first sequence."""

    @staticmethod
    def forward(ctx, x, count: int, context: ContextLike):
        known, rank = min(count, context.pre_num_conv_tokens or 0), dist.get_rank(context.group)
        gathered = _gather(x[0, -count:], context.group)  # shards shorter than `count` send all they have
        rows = x.new_zeros(count, x.shape[-1])
        if known:
            rows[count - known :] = gathered[:rank].flatten(0, 1)[-known:]
        ctx.shape, ctx.known, ctx.context = x.shape, known, context
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx, d_rows):
        count, T, group = len(d_rows), ctx.shape[1], ctx.context.group
        d_rows = d_rows.clone()
        d_rows[: count - ctx.known] = 0
        gathered, dx = _gather(d_rows, group), d_rows.new_zeros(ctx.shape)
        for ahead, of_rank in enumerate(gathered[dist.get_rank(group) + 1 :], 1):
            first = ahead * T - count  # where these rows begin, counted from the start of this shard
            begin, end = max(first, 0), min(first + count, T)
            if begin >= end:
                break
            dx[0, begin:end] += of_rank[begin - first : end - first]
        return dx, None, None


def rows_before(x: torch.Tensor, count: int, cp_context: ContextLike) -> torch.Tensor:
    """The ``count >= 1`` rows before a shard ``x [1, T_local, C]``, ``[count, C]``, as a causal convolution needs them.

    They are zero where they lie before the start of the shard's first sequence. Gradients go back to the ranks that the rows came from. A
    collective, like :func:`states_before`.
    """
    rows: Any = _RowsBefore.apply(x, count, cp_context)
    return rows


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, d_total):
        return d_total, None


def sum_over_ranks(x: torch.Tensor, cp_context: ContextLike) -> torch.Tensor:
    """Sum of ``x [...]`` over the ranks. Each rank's gradient is that of its own x, so that parameter gradients add up over ranks."""
    total: Any = _Sum.apply(x, cp_context.group)
    return total
