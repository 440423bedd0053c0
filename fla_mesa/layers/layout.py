"""Which places of a batch hold tokens, and which tokens form a sequence: one description of everything a caller may pass.

Callers mark padding and documents in many ways: a mask, boundaries (fla's ``cu_seqlens``, transformers' ``cu_seq_lens_q``), a number a
document (``seq_idx``), positions that start anew. :func:`find_layout` turns them into a :class:`Layout`, or says what it cannot take. It is
called once, where data enters a model (or a layer that is used alone); everything below goes by its answer. So padding never enters a
recurrence or a convolution, and documents never see each other.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, TypedDict, TypeVar, cast

import torch
from fla.layers.utils import index_first_axis, pad_input

from fla_mesa.ops.context_parallel import ContextLike, check_call

Tensor = torch.Tensor
F = TypeVar("F", bound=Callable[..., Any])


class Layout(NamedTuple):
    """The sequences of a batch ``[B, T]``. (A tuple, so that code that moves a module's arguments to a device also moves its tensors.)

    Attributes:
        batch, length: B and T.
        indices: Places of the tokens in the flattened batch ``[B * T]``, or None if every place holds one.
        cu_seqlens: Boundaries ``[N + 1]`` among these tokens, or None if the rows are the sequences and hold nothing else.
        rows: The row ``[N]`` of each sequence, if no row holds two and some hold none; None otherwise.
        packed: Whether a row may hold several sequences. Then they start from nothing, and a cache holds the states of sequences.
        cp_context: What is known of the whole row if this is a shard of one, whose first sequence may have begun on another rank.
    """

    batch: int
    length: int
    indices: Tensor | None = None
    cu_seqlens: Tensor | None = None
    rows: Tensor | None = None
    packed: bool = False
    cp_context: ContextLike | None = None

    def pack(self, x: Tensor) -> Tensor:
        """``[B, T, ...] -> [1, tokens, ...]``, or x itself if the rows are the sequences."""
        if self.cu_seqlens is None:
            return x
        x = x.flatten(0, 1)
        return (x if self.indices is None else index_first_axis(x, self.indices)).unsqueeze(0)

    def unpack(self, x: Tensor) -> Tensor:
        """Inverse of :func:`pack`: ``[B, T, ...]``, zero at padding."""
        if self.cu_seqlens is None:
            return x
        if self.indices is None:
            return x.unflatten(1, (self.batch, self.length)).squeeze(0)
        return pad_input(x.squeeze(0), cast("torch.LongTensor", self.indices), self.batch, self.length)


class SequenceKeywords(TypedDict, total=False):
    """Arguments besides the mask that say which tokens of a batch ``[B, T]`` form a sequence. All may be given if they agree.

    Attributes:
        cu_seqlens: Boundaries of sequences packed into one row, ``[N + 1]`` from 0 to T, increasing; B = 1. fla's name.
        cu_seq_lens_q: The same, transformers' name (its padding-free collators, TRL).
        cu_seq_lens_k: Comes with `cu_seq_lens_q` there, and must equal it, as a sequence's keys are its own.
        max_length_q, max_length_k: Come with these; the longest sequence, or more.
        seq_idx: A number for each position ``[B, T]``; neighbours of one number are one sequence.
        position_ids: ``[B, T]``, ``[1, T]`` or ``[T]`` (flame's). A sequence starts where they do not go up; elsewhere they go up by one
            (or, across padding, by the distance). Where they start is of no account, as only distances enter a model.
        cp_context: For a shard of a row that is cut over ranks, from :func:`fla_mesa.ops.make_cp_context` or fla; it comes alone.
    """

    cu_seqlens: Tensor | None
    cu_seq_lens_q: Tensor | None
    cu_seq_lens_k: Tensor | None
    max_length_q: int | Tensor | None
    max_length_k: int | Tensor | None
    seq_idx: Tensor | None
    position_ids: Tensor | None
    cp_context: ContextLike | None


def find_layout(
    batch: int,
    length: int,
    attention_mask: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | Tensor | None = None,
    max_length_k: int | Tensor | None = None,
    seq_idx: Tensor | None = None,
    position_ids: Tensor | None = None,
    cp_context: ContextLike | None = None,
) -> Layout:
    """The sequences of a batch ``[B, T]``; keywords as in :class:`SequenceKeywords`. Reads tensor values, which stalls a GPU.

    Args:
        batch, length: B and T.
        attention_mask: ``[B, >= T]``, 1 for tokens and 0 for padding on any side; its last T columns are those of the input.

    Raises:
        ValueError: One of them has a wrong shape or wrong values, or contradicts another; or there is no token.
        TypeError: One of them is no tensor of integers.
    """
    if batch < 1 or length < 1:
        raise ValueError(
            f"the input must hold at least one token in at least one row; got batch {batch}, length {length}"
        )
    if cp_context is not None:
        check_call(
            cp_context,
            (batch, length),
            "the input",
            cu_seqlens,
            attention_mask=attention_mask,
            cu_seq_lens_q=cu_seq_lens_q,
            cu_seq_lens_k=cu_seq_lens_k,
            max_length_q=max_length_q,
            max_length_k=max_length_k,
            seq_idx=seq_idx,
            position_ids=position_ids,
        )
        return Layout(batch, length, cu_seqlens=cp_context.cu_seqlens, packed=True, cp_context=cp_context)
    bounds = _boundaries(batch, length, cu_seqlens, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
    places = None if attention_mask is None else _real_places(attention_mask, batch, length)
    if seq_idx is not None:
        _check_integers("seq_idx", seq_idx, (batch, length))
    if position_ids is not None:
        _check_integers("position_ids", position_ids, (batch, length), (1, length), (length,))
    if length == 1:
        seq_idx = position_ids = None  # one token is one sequence, wherever it stands
    if bounds is None and seq_idx is None and position_ids is None:
        return _rows_as_sequences(batch, length, places)

    given = next(x for x in (bounds, seq_idx, position_ids) if x is not None)
    at = torch.arange(batch * length, device=given.device) if places is None else places  # [tokens]
    row = at // length
    starts = torch.ones_like(at, dtype=torch.bool)
    starts[1:] = row.diff() != 0
    inside = ~starts[1:]  # the token before it is of the same row
    changes: dict[str, Tensor] = {}
    if bounds is not None:
        changes["cu_seqlens"] = torch.searchsorted(bounds[1:].to(at.dtype), at, right=True).diff() != 0
    if seq_idx is not None:
        changes["seq_idx"] = seq_idx.flatten()[at].diff() != 0
    if position_ids is not None:
        changes["position_ids"] = _restarts(position_ids.expand(batch, length), at, inside)
    first, *others = changes
    for other in others:
        if bool((changes[other] & ~changes[first] & inside).any()):
            raise ValueError(f"{other} starts a sequence where {first} does not: they must agree")
    starts[1:] |= changes[first]
    if bounds is not None and places is None:
        return Layout(batch, length, cu_seqlens=bounds, packed=True)
    begins = starts.nonzero().flatten()
    cu = torch.cat([begins, begins.new_tensor([len(at)])]).to(torch.int32)
    if bounds is None and len(begins) == len(row[begins].unique()):
        return _rows_as_sequences(batch, length, places)
    return Layout(batch, length, places, cu, packed=True)


def _rows_as_sequences(batch: int, length: int, places: Tensor | None) -> Layout:
    if places is None:
        return Layout(batch, length)
    lengths = torch.bincount(places // length, minlength=batch)
    rows = lengths.nonzero().flatten()
    cu = torch.nn.functional.pad(lengths[rows].cumsum(0, dtype=torch.int32), (1, 0))
    return Layout(batch, length, places, cu, None if len(rows) == batch else rows)


def _real_places(attention_mask: Tensor, batch: int, length: int) -> Tensor | None:
    """Indices of the tokens in the flattened batch; None if every place holds one."""
    allowed = f"a 0-1 matrix [batch = {batch}, length >= {length}] with 0 for padding"
    if not isinstance(attention_mask, torch.Tensor):
        raise TypeError(f"attention_mask must be {allowed}; got a {type(attention_mask).__name__}")
    if attention_mask.ndim != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < length:
        raise ValueError(f"attention_mask must be {allowed}; got shape {list(attention_mask.shape)}")
    mask = attention_mask[:, -length:]
    real = mask != 0
    padded, other = torch.stack([~real.all(), (real & (mask != 1)).any()]).tolist()  # one look for both
    if other:
        raise ValueError(f"attention_mask must be {allowed}; got other values (to number the documents, pass seq_idx)")
    if not padded:
        return None
    places = real.flatten().nonzero().flatten()
    if len(places) == 0:
        raise ValueError(f"attention_mask leaves no token in its last {length} positions")
    return places


def _boundaries(
    batch: int,
    length: int,
    cu_seqlens: Tensor | None,
    cu_seq_lens_q: Tensor | None,
    cu_seq_lens_k: Tensor | None,
    max_length_q: int | Tensor | None,
    max_length_k: int | Tensor | None,
) -> Tensor | None:
    """The boundaries that were given under one or several names, or None."""
    names = {"cu_seqlens": cu_seqlens, "cu_seq_lens_q": cu_seq_lens_q, "cu_seq_lens_k": cu_seq_lens_k}
    given = {name: x for name, x in names.items() if x is not None}
    if not given or list(given) == ["cu_seq_lens_k"]:
        for name, x in {**given, "max_length_q": max_length_q, "max_length_k": max_length_k}.items():
            if x is not None:
                raise ValueError(f"{name} comes with the boundaries of the sequences: pass cu_seqlens or cu_seq_lens_q")
        return None
    (name, bounds), *others = given.items()
    if not isinstance(bounds, torch.Tensor) or bounds.dtype not in (torch.int32, torch.int64):
        got = bounds.dtype if isinstance(bounds, torch.Tensor) else type(bounds).__name__
        raise TypeError(f"{name} must be an int32 or int64 tensor; got {got}")
    if bounds.ndim != 1 or len(bounds) < 2:
        raise ValueError(f"{name} must have shape [N + 1] with N >= 1; got {list(bounds.shape)}")
    if batch != 1:
        raise ValueError(
            f"{name} describes sequences packed into one row; got a batch of {batch}: flatten it to one row, or pass seq_idx"
        )
    values = bounds.tolist()
    if values[0] != 0 or values[-1] != length:
        raise ValueError(f"{name} must start at 0 and end at the length {length}; got {values[0]} and {values[-1]}")
    lengths = [end - start for start, end in pairwise(values)]
    if min(lengths) <= 0:
        n = next(n for n, size in enumerate(lengths) if size <= 0)
        raise ValueError(f"{name} must increase; got {values[n]} and then {values[n + 1]} at index {n}")
    for other, x in others:
        if x is not bounds and x.tolist() != values:
            raise ValueError(f"{other} must equal {name}; got {x.tolist()} and {values}")
    for other, x in (("max_length_q", max_length_q), ("max_length_k", max_length_k)):
        if x is not None and int(x) < max(lengths):
            raise ValueError(f"{other} must be at least the longest sequence of {name}, {max(lengths)}; got {int(x)}")
    return bounds


def _check_integers(name: str, x: Tensor, *shapes: tuple[int, ...]) -> None:
    if not isinstance(x, torch.Tensor) or x.is_floating_point() or x.dtype == torch.bool:
        raise TypeError(
            f"{name} must be a tensor of integers; got {x.dtype if isinstance(x, torch.Tensor) else type(x).__name__}"
        )
    if tuple(x.shape) not in shapes:
        allowed = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name} must have shape {allowed}; got {list(x.shape)}")


def _restarts(position_ids: Tensor, at: Tensor, inside: Tensor) -> Tensor:
    """Where, after the first token, positions do not increase."""
    step, distance = position_ids.flatten()[at].diff(), at.diff()
    jumps = inside & (step > 1) & (step != distance)
    if bool(jumps.any()):
        n = int(jumps.nonzero()[0])
        raise ValueError(
            f"position_ids must increase by one within a sequence and restart at the next; got a step of {int(step[n])} at token {n + 1}: "
            "pass cu_seqlens or seq_idx if another sequence starts there"
        )
    return step <= 0


SEQUENCE_KEYWORDS = tuple(SequenceKeywords.__annotations__)


def describes_sequences(*, unlisted: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Decorator for a model's ``forward(..., **sequences)``: accepts :class:`SequenceKeywords` and no other keywords besides its own.

    ``inspect.signature`` shows them all, as transformers' Trainer and ``generate`` look there for what a model takes; all but `unlisted`.
    The cache has two names: that of the model, and ``cache``, as transformers calls it from 5.24 on.
    """

    def decorate(forward: F) -> F:
        signature = inspect.signature(forward)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        keywords = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in SEQUENCE_KEYWORDS]
        known = [p.name for p in (*own[1:], *keywords)]
        cache_name = next(name for name in ("past_key_values", "cache_params") if name in known)

        @functools.wraps(forward)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            cache = kwargs.pop("cache", None)
            if cache is not None:
                if kwargs.get(cache_name) is not None:
                    raise TypeError(f"cache and {cache_name} are names for the same argument; got both")
                kwargs[cache_name] = cache
            for name in kwargs:
                if name not in known:
                    raise unknown_keyword(f"{type(self).__name__}.forward", name, known)
            return forward(self, *args, **kwargs)

        listed = [p for p in (*own, *keywords) if p.name not in unlisted]
        wrapper.__signature__ = signature.replace(parameters=listed)  # pyright: ignore[reportAttributeAccessIssue]
        return cast("F", wrapper)

    return decorate


def unknown_keyword(function: str, name: str, known: list[str]) -> TypeError:
    """The error for an unknown keyword of a function, with the closest known one."""
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return TypeError(f"{function} does not take {name}; {hint}It takes {', '.join(known)}")
