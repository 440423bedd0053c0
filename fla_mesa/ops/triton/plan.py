"""What the kernels take, and in which tiles and precision they run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton

from fla_mesa.ops import gpu
from fla_mesa.ops.gpu import HOPPER, Gpu, Treatment, interpreted, treatment

CHUNK = 64  # positions between stored states
STATE_BLOCK = 64  # rows and columns of a state that a program has
MAX_HEAD_SIZE = 256
STATE_128 = 125 * gpu.KIB  # shared memory that the state of 128 channels and a chunk of keys take, in halves
# The least tolerance for which 16 bits of x are enough.
LEAST_TOLERANCE = 2.0**-11
STATE_CONFIGS = [triton.Config({}, num_warps=w, num_stages=s) for w, s in ((4, 1), (4, 2), (8, 1), (8, 2))]
SOLVE_CONFIGS = [triton.Config({}, num_warps=w, num_stages=s) for w in (4, 8) for s in (1, 2)]
PRECISE_CONFIGS = [triton.Config({}, num_warps=8, num_stages=s) for s in (1, 2)]
GRADIENT_CONFIGS = [triton.Config({}, num_warps=w, num_stages=s) for w, s in ((4, 1), (8, 1), (8, 2))]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Plan(NamedTuple):
    """How a call is computed: in which form x, y, G and the gradients of states are kept, and the solve's tiles and precisions.

    Attributes:
        HALF: They are float16, each row or block over a power of two of its own, and the solve is that of `kernels_solve`. Otherwise they
            are float32, the solve that of `kernels_precise`.
        BR: Positions a tile: rows that are solved together.
        BS: Keys, and rows of a state, that the float32 solve reads at a time.
        PRECISION: Of the products in the float32 iteration: "bf16x3", "tf32x3" or "ieee".
        FINE: Of every other product with a float32 operand: "tf32x3" or "ieee".
    """

    HALF: bool
    BR: int
    BS: int
    PRECISION: str = "bf16x3"
    FINE: str = "tf32x3"


def make_plan(K: int, dtype: torch.dtype, tolerance: float, *, kind: Gpu = HOPPER) -> Plan:
    """The plan for key size K, inputs of this type and this tolerance on a GPU of this kind."""
    BK, gets = power_of_two(K), treatment(kind)
    fits = BK <= 64 or (BK <= 128 and gets.shared >= STATE_128)
    if dtype != torch.float32 and tolerance >= LEAST_TOLERANCE and fits:
        # A matrix instruction of sm_90 takes 64 rows; sm_80 would keep the operands of as many in registers.
        return Plan(HALF=True, BR=64 if gets.wide else 32, BS=0)
    # Rows that fit the registers without spilling. The interpreter's time goes by the number of operations, not by their size.
    return Plan(HALF=False, BR=32 if BK <= 64 else 16, BS=64 if interpreted() else 16)


def kind_of(device: torch.device | Gpu) -> Gpu:
    """The kind of GPU that kernels are laid out for."""
    return gpu.of(device) or HOPPER


def _gets(arguments: dict) -> Treatment:
    """What the GPU gets that a kernel's arguments are on."""
    return treatment(kind_of(next(x.device for x in arguments.values() if hasattr(x, "device"))))


def trusted(configs: list[triton.Config], named_args: dict, **constants) -> list[triton.Config]:
    """Those that this GPU's compiler may be trusted with, for kernels whose products have 64 rows."""
    gets = _gets(named_args | constants)
    return [c for c in configs if c.num_stages <= gets.most_stages and c.num_warps <= gets.most_warps]


def solve_configs(configs: list[triton.Config], named_args: dict, **constants) -> list[triton.Config]:
    """What autotuning may choose for the solve in float16: rows belong to a warp, so that sums over them stay within it."""
    sizes = named_args | constants
    warps = 8 if sizes["BR"] == 32 and sizes["BK"] > 64 else 4
    return [c for c in trusted(configs, named_args, **constants) if c.num_warps == warps]


def precise_configs(configs: list[triton.Config], named_args: dict, **constants) -> list[triton.Config]:
    """What autotuning may choose for the solve in float32, whose products have 16 or 32 rows."""
    most_stages = _gets(named_args | constants).most_stages
    return [c for c in configs if c.num_stages <= most_stages]


def forward_positions_block(kind: Gpu, dtype: torch.dtype) -> int:
    """Positions read at a time for the states."""
    return CHUNK if dtype != torch.float32 else positions_block(kind)


def positions_block(kind: Gpu) -> int:
    """Positions read at a time for the gradients of states: a whole chunk, of which the next can be fetched meanwhile, where that fits."""
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
    """What autotuning may choose for the gradients of keys and values, the first being one that does not spill."""
    if (named_args | constants)["BR"] == CHUNK:
        return trusted(configs, named_args, **constants)
    return [c for c in precise_configs(configs, named_args, **constants) if c.num_warps == 8]


def size_class(programs: int) -> int:
    """What autotuning tells apart by size: less than a large GPU runs at once, a few times that, and more.

    Without it, whoever calls first, with 100 tokens say, chooses for the training that follows: choices are kept on disk.
    """
    return 0 if programs < 256 else 1 if programs < 2048 else 2


def power_of_two(n: int) -> int:
    """The block that holds n columns: a power of two, and at least the 16 that a matrix instruction needs."""
    return max(triton.next_power_of_2(n), 16)


def why_not(
    function: str, tensors: Mapping[str, torch.Tensor | None], *, max_steps: int, tolerance: float | None
) -> str | None:
    """What keeps the kernels from taking these tensors; q, k and v carry the head size in their last dimension."""
    if function == "query":
        return "has no read without a step"
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
