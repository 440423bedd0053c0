"""The op over shards on 1 to 4 ranks against the op over the whole row in one process."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from fla.ops.cp import FLACPContext, build_cp_context

from fla_mesa.ops import chunk_mesa_net, context_parallel, make_cp_context, take_shard
from fla_mesa.ops.context_parallel import rows_before
from fla_mesa.testing.cases import Case, draw
from fla_mesa.testing.ranks import run_once

T, SIZES = 144, (1, 2, 3, 4)
H, K, V = 2, 8, 12
INPUTS = ("q", "k", "v", "g", "beta", "lamb")


@dataclass(frozen=True)
class Row:
    """A row of sequences.

    Attributes:
        lengths: Of its sequences.
        gates: Range of the forget gate.
        forget: Positions whose gate forgets all, g = -inf.
        dtype: Of the inputs.
        bound: How far a shard may be from the whole, relative to the norm.
        block: Positions that are summed at a time.
        autocast: Whether all runs, the backward pass too, under autocast to bfloat16.
    """

    lengths: tuple[int, ...] = (T,)
    gates: tuple[float, float] = (0.9, 1.0)
    forget: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float64
    bound: float = 1e-12
    block: int = 4096
    autocast: bool = False


# Shards are 144, 72, 48 or 36 positions long.
ROWS = {
    "one sequence": Row(),
    "one sequence, in blocks": Row(block=10),
    "boundaries inside shards": Row((10, 100, 34)),
    "boundaries at edges of shards": Row((36, 36, 72)),
    "boundaries beside edges": Row((35, 2, 34, 2, 34, 37)),
    "a sequence over three shards of four, in blocks": Row((30, 100, 14), block=7),
    "sequences of one position": Row((1, 70, 1, 1, 35, 1, 35)),
    "nothing is forgotten": Row(gates=(1.0, 1.0)),
    "forgetting all, also at edges": Row((144,), forget=(0, 35, 71, 72, 143)),
    "forgetting all in packed sequences": Row((50, 94), forget=(49, 50, 71, 120)),
    "decay that underflows": Row(gates=(0.0, 1e-3)),
    "float32": Row((20, 100, 24), dtype=torch.float32, bound=3e-6),
    "float32 that underflows": Row(gates=(0.0, 1e-3), dtype=torch.float32, bound=3e-6),
    "bfloat16": Row((20, 100, 24), dtype=torch.bfloat16, bound=1e-2),
    "under autocast": Row((20, 100, 24), dtype=torch.float32, bound=1e-2, autocast=True),
    "float16": Row((20, 100, 24), dtype=torch.float16, bound=2e-3),
}


def inputs(row: Row) -> dict[str, torch.Tensor]:
    """Leaves; g and beta of 16-bit rows are float32, as layers make them."""
    x = draw(Case(T=T, H=H, K=K, V=V, gates=row.gates, spread=1.0, initial=False), row.dtype)
    if row.dtype.itemsize == 2:
        x |= {name: x[name].detach().float().requires_grad_() for name in ("g", "beta", "lamb")}
    with torch.no_grad():
        x["g"][:, row.forget] = -torch.inf
    return {name: x[name] for name in INPUTS}


def outputs(x: dict[str, torch.Tensor], d_o: torch.Tensor, autocast: bool, **options) -> dict[str, torch.Tensor]:
    """o and the gradients, under upstream ``d_o``."""
    tolerance = 1e-14 if d_o.dtype == torch.float64 else 1e-7
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        o = chunk_mesa_net(**x, cg_tolerance=tolerance, max_CG_iteration=60, backend="pytorch", **options)[0]
        gradients = torch.autograd.grad(o, list(x.values()), d_o.to(o.dtype))
    return {"o": o.detach()} | {f"d{name}": dx for name, dx in zip(x, gradients, strict=True)}


def errors_of_rows(groups: dict[int, dist.ProcessGroup]) -> dict[tuple[str, int], dict[str, float]]:
    """For each row and size of a group: how far what this rank got is from its part of the whole."""
    found = {}
    for name, row in ROWS.items():
        x = inputs(row)
        d_o = torch.randn(1, T, H, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(row.dtype)
        cu_seqlens = torch.tensor([0, *row.lengths]).cumsum(0)
        whole = outputs(x, d_o, row.autocast, cu_seqlens=cu_seqlens)
        for size, group in groups.items():
            if dist.get_rank() >= size:
                continue
            context = make_cp_context(cu_seqlens, group)
            mine = {n: v if n == "lamb" else take_shard(v, context) for n, v in x.items()}
            mine = {n: v.detach().clone().requires_grad_() for n, v in mine.items()}
            with mock.patch.object(context_parallel, "BLOCK", row.block):
                got = outputs(mine, take_shard(d_o, context), row.autocast, cp_context=context)
            dist.all_reduce(got["dlamb"], group=group)
            want = {n: v if n == "dlamb" else take_shard(v, context) for n, v in whole.items()}
            # The norms are those of whole tensors: a shard of tiny gradients is held to the same absolute error.
            found[name, size] = {
                n: float((got[n].double() - want[n].double()).norm() / whole[n].double().norm()) for n in want
            }
    return found


def errors_of_convolutions(groups: dict[int, dist.ProcessGroup]) -> dict[tuple[tuple[int, ...], int, int], float]:
    """For each row, size of a group and width: how far a convolution over shards is from that over the whole, gradients included."""

    def convolve(x: torch.Tensor, before: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """``x [1, T, C]``, ``before [W - 1, C]``, ``weight [C, 1, W]`` -> ``[1, T, C]``"""
        return F.conv1d(torch.cat([before[None], x], 1).mT, weight, groups=len(weight)).mT

    found = {}
    for lengths in dict.fromkeys(row.lengths for row in ROWS.values()):
        for width in (4, 60):  # the second is longer than a shard of four
            rng = torch.Generator().manual_seed(0)
            x, dy = (torch.randn(1, T, 3, generator=rng, dtype=torch.float64) for _ in range(2))
            weight, x = torch.randn(3, 1, width, generator=rng, dtype=torch.float64), x.requires_grad_()
            start = torch.zeros(width - 1, 3, dtype=torch.float64)
            y = torch.cat([convolve(part, start, weight) for part in x.split(lengths, 1)], 1)
            (dx,) = torch.autograd.grad(y, x, dy)
            for size, group in groups.items():
                if dist.get_rank() >= size:
                    continue
                context = make_cp_context(torch.tensor([0, *lengths]).cumsum(0), group)
                mine = take_shard(x, context).detach().requires_grad_()
                before = rows_before(mine, width - 1, context)
                first, *others = mine.split(context.cu_seqlens.diff().tolist(), 1)
                got = torch.cat(
                    [convolve(first, before, weight), *(convolve(part, start, weight) for part in others)], 1
                )
                (d_mine,) = torch.autograd.grad(got, mine, take_shard(dy, context))
                pairs = (got, take_shard(y, context)), (d_mine, take_shard(dx, context))
                found[lengths, size, width] = max(float((a - b).abs().max()) for a, b in pairs)
    return found


FIELDS = ("pre_num_ranks", "post_num_ranks", "pre_num_conv_tokens", "layout", "group")


def records_differ(groups: dict[int, dist.ProcessGroup]) -> list[str]:
    """Where fla's record of a row is not ours, in its contiguous layout."""
    differ = []
    for name, row in ROWS.items():
        for size, group in groups.items():
            if dist.get_rank() >= size:
                continue
            cu_seqlens = torch.tensor([0, *row.lengths]).cumsum(0)
            ours, fla = make_cp_context(cu_seqlens, group), build_cp_context(cu_seqlens, group=group)
            same = torch.equal(ours.cu_seqlens, fla.cu_seqlens) and torch.equal(ours.cu_seqlens_cpu, fla.cu_seqlens_cpu)
            if not same or any(getattr(ours, field) != getattr(fla, field) for field in FIELDS):
                differ.append(f"{name}, {size} ranks, rank {dist.get_rank()}: {ours}, fla {fla}")
    return differ


def fla_context_changes(groups: dict[int, dist.ProcessGroup]) -> float:
    """How far the output with fla's record is from that with ours."""
    cu_seqlens, group = torch.tensor([0, 40, 144]), groups[4]
    x = {name: value.detach() for name, value in inputs(Row()).items()}
    mine = {n: v if n == "lamb" else take_shard(v, make_cp_context(cu_seqlens, group)) for n, v in x.items()}
    ours, fla = (
        chunk_mesa_net(**mine, cp_context=context)[0]
        for context in (make_cp_context(cu_seqlens, group), build_cp_context(cu_seqlens, group=group))
    )
    return float((ours - fla).abs().max())


def messages() -> list[tuple[int, torch.dtype]]:
    """Size and type of what this rank sends in one forward and backward pass over four ranks."""
    context, sent, gather = make_cp_context(torch.tensor([0, T])), [], context_parallel._all_gather
    x = {
        n: (v if n == "lamb" else take_shard(v, context)).detach().requires_grad_()
        for n, v in inputs(Row(dtype=torch.bfloat16)).items()
    }

    def spy(out: torch.Tensor, message: torch.Tensor, **options):
        sent.append((message.numel(), message.dtype))
        return gather(out, message, **options)

    with mock.patch.object(context_parallel, "_all_gather", spy):
        chunk_mesa_net(**x, cp_context=context)[0].sum().backward()
    return sent


def calls() -> dict[str, Callable[[], object]]:
    """Bad calls by name, on any of four ranks. Each has to fail before it communicates."""
    rank = dist.get_rank()
    good = make_cp_context(torch.tensor([0, 50, T]))
    x = {n: (v if n == "lamb" else take_shard(v, good)).detach() for n, v in inputs(Row()).items()}
    h_kk, h_kv = torch.zeros(1, H, K, K), torch.zeros(1, H, K, V)
    by_hand = {f: getattr(good, f) for f in ("group", "cu_seqlens", "cu_seqlens_cpu", *FIELDS[:3])}

    def op(**changes):
        return lambda: chunk_mesa_net(**x | {"cp_context": good} | changes)

    def make(*args, **options):
        return lambda: make_cp_context(*args, **options)

    others = dist.new_group([r for r in range(4) if r != 2]), dist.new_group([2])
    return {
        "an initial state": op(h_kk_init=h_kk, h_kv_init=h_kv),
        "a final state": op(output_final_state=True),
        "boundaries beside the context's": op(cu_seqlens=torch.tensor([0, T // 4])),
        "a copy of boundaries": op(cu_seqlens_cpu=torch.tensor([0, T // 4])),
        "the whole row": op(q=torch.zeros(1, T, H, K)),
        "two rows": op(q=torch.zeros(2, T // 8, H, K)),
        "a group as context": op(cp_context=dist.group.WORLD),
        "fla's zigzag": op(cp_context=build_cp_context(torch.tensor([0, T]), group=dist.group.WORLD, layout="zigzag")),
        "fla's empty record": op(cp_context=FLACPContext()),
        "a record without counts": op(cp_context=FLACPContext(**by_hand | {"pre_num_ranks": None})),
        "the record of another rank": op(cp_context=FLACPContext(**by_hand | {"pre_num_ranks": rank + 1})),
        "the record of a longer group": op(cp_context=FLACPContext(**by_hand | {"post_num_ranks": 4 - rank})),
        "bad arguments as ever": op(beta=torch.zeros(1, 3, H)),
        "unequal shards": make(torch.tensor([0, 50, 142])),
        "boundaries from 1": make(torch.tensor([1, T])),
        "boundaries that fall": make(torch.tensor([0, 80, 40, T])),
        "no boundaries": make(torch.tensor([0])),
        "boundaries as a list": make([0, T]),
        "boundaries as floats": make(torch.tensor([0.0, T])),
        "a group of others": make(torch.tensor([0, T]), others[1 if rank != 2 else 0]),
        "a row that does not divide": lambda: take_shard(torch.zeros(1, 6), good),
        "a shard without a context": lambda: take_shard(torch.zeros(1, 8), None),
    }


BAD = {
    "an initial state": (ValueError, "h_kk_init cannot be combined with cp_context; got a torch.float32 tensor"),
    "a final state": (ValueError, "output_final_state cannot be combined with cp_context; got True"),
    "boundaries beside the context's": (ValueError, "cu_seqlens comes with cp_context"),
    "a copy of boundaries": (ValueError, "cu_seqlens_cpu cannot be combined with cp_context"),
    "the whole row": (ValueError, r"q must be this rank's shard, \[1, 36, ...\].*got shape \[1, 144, 2, 8\]"),
    "two rows": (ValueError, r"q must be this rank's shard, \[1, 36, ...\].*got shape \[2, 18, 2, 8\]"),
    "a group as context": (
        TypeError,
        "cp_context must come from fla_mesa.ops.make_cp_context .* without group, cu_seqlens",
    ),
    "fla's zigzag": (ValueError, "cp_context.layout must be 'contiguous'.*got 'zigzag'"),
    "fla's empty record": (ValueError, "cp_context.group must be a process group; got None"),
    "a record without counts": (ValueError, "cp_context.pre_num_ranks must be set"),
    "the record of another rank": (ValueError, "cp_context belongs to another rank or group: .* ranks back"),
    "the record of a longer group": (ValueError, "cp_context belongs to another rank or group"),
    "bad arguments as ever": (ValueError, r"beta must have shape \[B, T, H\] = \[1, 36, 2\]"),
    "unequal shards": (ValueError, "multiple of the 4 ranks.*got T = 142: append 2 positions"),
    "boundaries from 1": (ValueError, r"boundaries of the whole row, \[0, ..., T\], increasing; got \[1, 144\]"),
    "boundaries that fall": (ValueError, r"increasing; got \[0, 80, 40, 144\]"),
    "no boundaries": (ValueError, r"increasing; got \[0\]"),
    "boundaries as a list": (TypeError, r"cu_seqlens must be an int32 or int64 tensor; got \[0, 144\] of type list"),
    "boundaries as floats": (TypeError, "cu_seqlens must be an int32 or int64 tensor; got a torch.float32 tensor"),
    "a group of others": (ValueError, "group must be a process group that this process is in"),
    "a row that does not divide": (ValueError, "x must hold a multiple of 4 positions.*got 6 along dim 1"),
    "a shard without a context": (TypeError, "cp_context must come from .*got None of type NoneType"),
}


def on_this_rank() -> dict[str, Any]:
    """Everything that needs several ranks: a group takes seconds to start."""
    groups = {size: dist.new_group(list(range(size))) for size in SIZES[:-1]} | {4: dist.group.WORLD}
    raised = {}
    for name, call in calls().items():
        try:
            call()
        except (TypeError, ValueError) as error:
            raised[name] = type(error), str(error)
    return {
        "errors": errors_of_rows(groups),
        "convolutions": errors_of_convolutions(groups),
        "records": records_differ(groups),
        "fla": fla_context_changes(groups),
        "messages": messages(),
        "raised": raised,
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of four ranks found."""
    return run_once(tmp_path_factory, on_this_rank, 4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ROWS)
def test_shards_give_what_the_whole_gives(ranks, name, size):
    for found in ranks[:size]:
        errors = found["errors"][name, size]
        assert set(errors) == {"o", "dq", "dk", "dv", "dg", "dbeta", "dlamb"}
        for tensor, error in errors.items():
            # What stays in float32 whatever the type of q, k and v is not rounded to that.
            bound = ROWS[name].bound if tensor in ("o", "dq", "dk", "dv") else min(ROWS[name].bound, 3e-6)
            assert error <= bound, (tensor, errors)


@pytest.mark.parametrize("size", SIZES)
def test_rows_before_a_shard(ranks, size):
    for found in ranks[:size]:
        errors = {case: error for case, error in found["convolutions"].items() if case[1] == size}
        assert len(errors) >= 2 * 7
        assert all(error <= 1e-13 for error in errors.values()), errors


def test_the_record_is_flas(ranks):
    assert [difference for found in ranks for difference in found["records"]] == []


def test_flas_record_is_taken(ranks):
    assert [found["fla"] for found in ranks] == [0.0] * 4


def test_one_message_each_way_whatever_the_length(ranks):
    # Decay and states forward, gradients of states backward, in float32 for 16-bit inputs.
    message = H * K * (K + V)
    assert [found["messages"] for found in ranks] == [[(message + H, torch.float32), (message, torch.float32)]] * 4


@pytest.mark.parametrize("name", BAD)
def test_bad_input(ranks, name):
    expected, message = BAD[name]
    for found in ranks:
        assert name in found["raised"], "nothing raised"
        error, text = found["raised"][name]
        assert error is expected
        assert re.search(message, text), text


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match="init_process_group"):
        make_cp_context(torch.tensor([0, 8]))
