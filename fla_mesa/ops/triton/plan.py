"""Which inputs the kernels support, and the tiles and precision they use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton

from fla_mesa.ops import gpu
from fla_mesa.ops.gpu import HOPPER, Gpu, Treatment, interpreted, treatment

CHUNK = 64  # positions between stored states
MAX_HEAD_SIZE = 256
STATE_128 = 112 * gpu.KIB  # shared memory that the state of 128 channels and a chunk of keys take
COARSE = 2.0**-11  # a tolerance above this is within reach of one round of float16
SOLVE_CONFIGS = [
    triton.Config({"MERGE": m}, num_warps=w, num_stages=s) for s in (1, 2) for m, w in ((1, 8), (1, 4), (2, 4))
]
GRADIENT_CONFIGS = [triton.Config({}, num_warps=w, num_stages=s) for w, s in ((4, 1), (8, 1), (8, 2))]
STATE_CONFIGS = [triton.Config({}, num_warps=w, num_stages=s) for w, s in ((4, 1), (4, 2), (8, 1), (8, 2))]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Plan(NamedTuple):
    """Tile shapes and precisions of one stage of the solve, by the kernels' argument names.

    Attributes:
        BT: Positions a chunk.
        BR: Positions a tile: rows that are solved together.
        BK: Key size, rounded up to a power of two.
        BS: Keys read at a time where they are not resident.
        BD: Rows of a state read at a time where it is not resident.
        RESIDENT: Keep the state and the chunk's keys in shared memory through the iteration.
        REFINE: Compute the residual anew in FINE, and go on where it is too large.
        PRECISION: Of the products in the iteration: "fp16" for rounds of float16, of which RESIDENT and REFINE have nothing to say, and
            "fp16 once" for such rounds if the first can reach the tolerance; "bf16x3", "bf16", "tf32", "tf32x3" or "ieee" for the float32
            iteration (notes in ``docs/kernels.md``).
        FINE: Of every other product with a float32 operand: "tf32x3" or "ieee".
    """

    BT: int
    BR: int
    BK: int
    BS: int
    BD: int
    RESIDENT: bool
    REFINE: bool
    PRECISION: str
    FINE: str


def make_plan(
    K: int, *, kind: Gpu = HOPPER, PRECISION: str = "bf16x3", REFINE: bool = True, FINE: str = "tf32x3"
) -> Plan:
    """The plan of the float32 iteration for key size K on a GPU of this kind."""
    BK, gets = power_of_two(K), treatment(kind)
    RESIDENT = (128 if gets.shared >= STATE_128 else 64) >= BK
    # Rows that fit the registers without spilling (table in benchmarks/results/kernels_static_*.md).
    BR = 32 if RESIDENT and BK <= 64 else 16
    # The interpreter's time goes by the number of operations, not by their size.
    BLOCK = 64 if interpreted() else 32 if BR == 32 and gets.wide else 16
    return Plan(CHUNK, BR, BK, BLOCK, BLOCK, RESIDENT, REFINE, PRECISION, FINE)


def make_stages(K: int, tolerance: float = 1e-4, *, kind: Gpu = HOPPER) -> tuple[Plan, ...]:
    """The default plans: rounds of float16 if state and keys fit shared memory, then the float32 iteration for the remaining rows."""
    precise = make_plan(K, kind=kind)
    if not precise.RESIDENT:
        return (precise,)
    # A matrix instruction of sm_90 takes 64 rows; sm_80 would keep the operands of as many in registers.
    BR = 64 if precise.BK <= 64 and treatment(kind).wide else 32
    BLOCK = 64 if interpreted() else 32
    rounds = "fp16 once" if tolerance > COARSE else "fp16"
    return precise._replace(BR=BR, BS=BLOCK, BD=BLOCK, RESIDENT=False, PRECISION=rounds), precise


def kind_of(device: torch.device | Gpu) -> Gpu:
    """The kind of GPU that kernels are planned for."""
    return gpu.of(device) or HOPPER


def _gets(arguments: dict) -> Treatment:
    """Settings for the GPU that holds a kernel's arguments."""
    return treatment(kind_of(next(x.device for x in arguments.values() if hasattr(x, "device"))))


def trusted(configs: list[triton.Config], named_args: dict, **constants) -> list[triton.Config]:
    """Configurations that this GPU's compiler handles correctly, for kernels whose products have 64 rows."""
    gets = _gets(named_args | constants)
    return [c for c in configs if c.num_stages <= gets.most_stages and c.num_warps <= gets.most_warps]


def solve_configs(configs: list[triton.Config], named_args: dict, **constants) -> list[triton.Config]:
    """Autotuning's choices for a stage of the solve; the first does not spill.

    Some of the others spill registers, though not in the iteration, and may be faster: time decides. MERGE = 2 solves two tiles as one
    and halves what the iteration reads (K = 128).
    """
    plan = named_args | constants
    gets = _gets(plan)

    def fits(config: triton.Config) -> bool:
        if plan["PRECISION"].startswith("fp16"):
            small = plan["BK"] <= 64
            if config.kwargs["MERGE"] == 2:
                return not small and config.num_warps == 4
            return config.num_warps == (4 if small else 8)
        return config.kwargs["MERGE"] == 1 and (config.num_warps == 8 or plan["BK"] <= 64)

    fitting = [c for c in configs if c.num_stages <= gets.most_stages and fits(c)]
    # Of a second stage there is next to nothing to time.
    return fitting[:1] if plan["AGAIN"] else fitting


def forward_positions_block(kind: Gpu, dtype: torch.dtype) -> int:
    """Positions read at a time for the states."""
    return CHUNK if dtype != torch.float32 else positions_block(kind)


def positions_block(kind: Gpu) -> int:
    """Positions read at a time for the gradients of states: a whole chunk if the next one fits too, to be fetched meanwhile."""
    return CHUNK if treatment(kind).wide or interpreted() else 32


def gradient_blocks(K: int, V: int, dtype: torch.dtype, precise: str) -> dict[str, Any]:
    """Blocks and precision of the gradients of keys and values: BR keys a program, BD and BN columns at a time.

    What gradients of 16 bits do not show need not be computed; `precise` is for float32 inputs.
    """
    narrow = dtype != torch.float32
    columns = power_of_two(max(K, V))
    if interpreted():
        BR, BD, BN = CHUNK, 64, 64
    else:
        BR, BD, BN = (CHUNK, 32, 32) if narrow else (16, 16, 64)
    return {"BR": BR, "BD": BD, "BN": min(BN, columns), "PRECISION": "bf16x3" if narrow else precise}


def gradient_configs(configs: list[triton.Config], named_args: dict, **constants) -> list[triton.Config]:
    """Autotuning's choices for the gradients of keys and values; the first does not spill."""
    if (named_args | constants)["BR"] == CHUNK:
        return trusted(configs, named_args, **constants)
    most_stages = _gets(named_args | constants).most_stages
    return [c for c in configs if c.num_warps == 8 and c.num_stages <= most_stages]


def size_class(programs: int) -> int:
    """Problem sizes that autotuning distinguishes: less than a large GPU runs at once, a few times that, and more.

    Without it, whoever calls first, with 100 tokens say, chooses for the training that follows: choices are kept on disk.
    """
    return 0 if programs < 256 else 1 if programs < 2048 else 2


def power_of_two(n: int) -> int:
    """The block size for n columns: a power of two, at least the 16 that a matrix instruction needs."""
    return max(triton.next_power_of_2(n), 16)


def why_not(
    function: str, tensors: Mapping[str, torch.Tensor | None], *, max_steps: int, tolerance: float | None
) -> str | None:
    """Why the kernels do not support these tensors ``[..., K]``, whose last dimension is the head size; None if they do."""
    if function == "query":
        return "cannot read a state without a step"
    q = tensors["q"]
    assert q is not None
    if (reason := gpu.why_no_kernels(q.device)) is not None:
        return reason
    for name, x in tensors.items():
        if x is None:
            continue
        if x.dtype not in DTYPES:
            return f"takes float32, bfloat16 and float16; {name} has dtype {x.dtype}"
        if name in ("q", "k", "v") and x.shape[-1] > MAX_HEAD_SIZE:
            return f"takes heads of at most {MAX_HEAD_SIZE}; {name} has head size {x.shape[-1]}"
    return None
