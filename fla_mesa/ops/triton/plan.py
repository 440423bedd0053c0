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
# Rows of a tile and warps that solve them, one and two stages.
SOLVE_CONFIGS = [
    triton.Config({"BR": rows}, num_warps=w, num_stages=s)
    for s in (1, 2)
    for rows, w in ((64, 4), (32, 4), (32, 8), (16, 8))
]
GRADIENT_CONFIGS = [triton.Config({}, num_warps=w, num_stages=s) for w, s in ((4, 1), (8, 1), (8, 2))]
STATE_CONFIGS = [triton.Config({}, num_warps=w, num_stages=s) for w, s in ((4, 1), (4, 2), (8, 1), (8, 2))]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Plan(NamedTuple):
    """Tile shapes and precisions of the solve, by the kernels' argument names. (Autotuning chooses BR, the rows solved together.)

    Attributes:
        BT: Positions a chunk.
        BK: Key size, rounded up to a power of two.
        BS: Keys read at a time where they are not resident.
        BD: Rows of a state read at a time where it is not resident.
        RESIDENT: Of the float32 iteration: keep the state and the chunk's keys in shared memory. (Rounds of float16 always do.)
        REFINE: Of the float32 iteration: compute the residual anew in FINE, and go on where it is too large. (Rounds always do.)
        PRECISION: Of the products in the iteration: "fp16" for rounds of float16, "fp16 once" for such rounds if the first can reach the
            tolerance; "bf16x3", "bf16", "tf32", "tf32x3" or "ieee" for the float32 iteration (notes in ``docs/kernels.md``).
        FINE: Of every other product with a float32 operand: "tf32x3" or "ieee".
    """

    BT: int
    BK: int
    BS: int
    BD: int
    RESIDENT: bool
    REFINE: bool
    PRECISION: str
    FINE: str

    @property
    def rounds(self) -> bool:
        """Whether this is the plan of rounds of float16."""
        return self.PRECISION.startswith("fp16")


def make_plan(K: int, dtype: torch.dtype, tolerance: float, *, kind: Gpu = HOPPER) -> Plan:
    """The default for key size K: rounds of float16 for 16-bit inputs if state and keys fit shared memory, else the float32 iteration."""
    if dtype != torch.float32 and state_fits(K, kind):
        return plan_rounds(K, tolerance)
    return plan_iteration(K, kind=kind)


def plan_rounds(K: int, tolerance: float) -> Plan:
    """Rounds of float16; the blocks are those of what they leave to the float32 iteration, and of the products before and after."""
    PRECISION = "fp16 once" if tolerance > COARSE else "fp16"
    # The interpreter's time goes by the number of operations, not by their size.
    BLOCK = 64 if interpreted() else 32
    return Plan(CHUNK, power_of_two(K), BLOCK, BLOCK, RESIDENT=False, REFINE=True, PRECISION=PRECISION, FINE="tf32x3")


def plan_iteration(
    K: int, *, kind: Gpu = HOPPER, PRECISION: str = "bf16x3", REFINE: bool = True, FINE: str = "tf32x3"
) -> Plan:
    """The float32 iteration on a GPU of this kind."""
    BK = power_of_two(K)
    BLOCK = 64 if interpreted() else 32 if BK <= 64 and treatment(kind).wide else 16
    return Plan(CHUNK, BK, BLOCK, BLOCK, state_fits(K, kind), REFINE, PRECISION, FINE)


def state_fits(K: int, kind: Gpu) -> bool:
    """Whether a program's shared memory holds the state of K channels and a chunk of keys, in 32 bits an entry."""
    return power_of_two(K) <= (128 if treatment(kind).shared >= STATE_128 else 64)


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
    """Autotuning's choices for the solve; the first does not spill in a loop, and little outside (benchmarks/results/kernels_static_*.md).

    Of rounds at K = 128, tiles of 64 rows take half the cycles of the default's 32 by count, but spill 1,000 bytes: time decides.
    """
    plan = named_args | constants
    gets, small = _gets(plan), plan["BK"] <= 64
    if plan["PRECISION"].startswith("fp16"):
        # A matrix instruction of sm_90 takes 64 rows; sm_80 would keep the operands of as many in registers.
        tiles = [(32, 8), (64, 4)] if not small else [(64, 4)] if gets.wide else [(32, 4)]
    else:
        tiles = [(32, 8), (32, 4)] if small else [(16, 8)]
    configs = [c for c in configs if c.num_stages <= gets.most_stages and (c.kwargs["BR"], c.num_warps) in tiles]
    return sorted(configs, key=lambda c: (c.num_stages, tiles.index((c.kwargs["BR"], c.num_warps))))


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
