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
STATE_BLOCK = 64  # rows and columns of a state that a program has
STATE_128 = 112 * gpu.KIB  # shared memory that the state of 128 channels and a chunk of keys take
STATE_CONFIGS = [triton.Config({}, num_warps=w, num_stages=s) for w, s in ((4, 1), (4, 2), (8, 1), (8, 2))]
SOLVE_CONFIGS = [triton.Config({}, num_warps=w, num_stages=s) for s in (1, 2) for w in (8, 4)]
GRADIENT_CONFIGS = [triton.Config({}, num_warps=w, num_stages=s) for w, s in ((4, 1), (8, 1), (8, 2))]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Plan(NamedTuple):
    """How a call is computed.

    Attributes:
        HALF: x, y, G and the gradients of states are kept in float16 over powers of two, and the solve is that of `kernels_solve`.
            Otherwise they are float32, and it is that of `kernels_precise`.
        BR: Positions a tile: rows that are solved together.
        AGAIN: The same in the second round of `kernels_solve`.
        BS: Keys, and rows of a state, that `kernels_precise` reads at a time where they are not resident.
        RESIDENT: It keeps the state and the chunk's keys in shared memory through the iteration.
        PRECISION: Of the products in its iteration: "bf16x3", "bf16", "tf32", "tf32x3" or "ieee" (notes in ``docs/kernels.md``).
        FINE: Of every other product with a float32 operand: "tf32x3" or "ieee".
    """

    HALF: bool
    BR: int
    AGAIN: int
    BS: int
    RESIDENT: bool
    PRECISION: str
    FINE: str


def make_plan(
    K: int, dtype: torch.dtype, *, kind: Gpu = HOPPER, PRECISION: str = "bf16x3", FINE: str = "tf32x3"
) -> Plan:
    """The plan for key size K and inputs of this type on a GPU of this kind."""
    BK, gets = power_of_two(K), treatment(kind)
    RESIDENT = (128 if gets.shared >= STATE_128 else 64) >= BK
    HALF = RESIDENT and dtype != torch.float32
    # A matrix instruction of sm_90 takes 64 rows; sm_80 would keep the operands of as many in registers.
    rows = 64 if gets.wide else 32
    # Rows of float32 that fit the registers without spilling.
    precise = 32 if RESIDENT and BK <= 64 else 16
    # The interpreter's time goes by the number of operations, not by their size.
    BS = 64 if interpreted() else 32 if precise == 32 and gets.wide else 16
    return Plan(HALF, rows if HALF else precise, rows if BK <= 64 else 32, BS, RESIDENT, PRECISION, FINE)


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
    """Autotuning's choices for the solves; the first does not spill. In tiles of 64 rows these belong to a warp, so that sums stay within it."""
    sizes = named_args | constants
    warps = 4 if sizes["BR"] == 64 or sizes.get("BK", sizes.get("BN")) <= 64 else 8
    fitting = [c for c in configs if c.num_warps == warps and c.num_stages <= _gets(sizes).most_stages]
    # A second round works in place, so it must not be tried out.
    return fitting if sizes.get("FIRST", True) else fitting[:1]


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
