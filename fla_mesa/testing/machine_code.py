"""Machine code of a compiled kernel: its instructions and loops, and the cycles they take on a multiprocessor."""

from __future__ import annotations

import collections
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

ISSUED = 4  # instructions a cycle
SHARED = 128  # bytes a cycle
WIDTH = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}  # bytes a thread, 4 where none is named
MMA = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8}  # multiply-adds of 16 bits; of tf32 they count twice


@dataclass(frozen=True)
class Step:
    """Cycles of a multiprocessor per tile and step."""

    instructions: float
    shared: float
    products: float
    barriers: int


def machine_code(cubin: bytes) -> tuple[list[str], list[tuple[int, int]]]:
    """Instructions, and their loops as (first, last)."""
    nvdisasm = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([nvdisasm, "-c", file.name], capture_output=True, text=True, check=True).stdout
    labels, code = {}, []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            code.append(re.sub(r"^@!?U?P\w+\s+", "", instruction[1].strip()))
    jumps = [(i, re.search(r"`\((\.L\w+)\)", x)) for i, x in enumerate(code) if x.startswith("BRA")]
    return code, [(labels[to[1]], i) for i, to in jumps if to and labels.get(to[1], i + 1) <= i]


def cost(code: list[str], warps: int, arch: int) -> Step:
    """Cost of one pass over these instructions by all warps of a tile."""
    cycles: collections.defaultdict[str, float] = collections.defaultdict(float)
    for instruction in code:
        name, *parts = instruction.split()[0].split(".")
        tf32 = 2 if "TF32" in parts else 1
        if name == "HMMA":
            cycles["products"] += MMA[parts[0]] * tf32 / (1024 if arch < 90 else 0.63 * 2048)
        elif name == "HGMMA":  # of four warps, each of which issues it
            m, n, k = (int(size) for size in parts[0].split("x"))
            cycles["products"] += m * n * k * tf32 / 2048 / 4
            a_in_shared = not instruction.split()[2].startswith("R")
            cycles["shared"] += (n + m * a_in_shared) * k * 2 / SHARED / 4
        elif name in ("LDSM", "STSM"):  # matrices of 128 bytes, one if no number is named
            cycles["shared"] += int(parts[-1] if parts[-1].isdigit() else 1) * 128 / SHARED
        elif name in ("LDS", "STS", "LDL", "STL"):
            cycles["shared"] += next((WIDTH[p] for p in parts if p in WIDTH), 4) * 32 / SHARED
        elif name == "SHFL":
            cycles["shared"] += 1
    barriers = sum(instruction.startswith("BAR.SYNC") for instruction in code)
    return Step(len(code) * warps / ISSUED, cycles["shared"] * warps, cycles["products"] * warps, barriers)


def inside(loop: tuple[int, int], other: tuple[int, int]) -> bool:
    return other != loop and other[0] <= loop[0] and loop[1] <= other[1]


def iteration(code: list[str], loops: list[tuple[int, int]], nested: bool) -> tuple[int, int]:
    """The loop of conjugate gradients: the first innermost loop with matrix products."""
    products = [(a, b) for a, b in loops if any("MMA" in x for x in code[a : b + 1])]

    return min(
        loop
        for loop in products
        if not any(inside(other, loop) for other in products)
        and any(inside(loop, other) for other in products) == nested
        and any(x.startswith("SHFL") for x in code[loop[0] : loop[1] + 1])  # row sums: no other loop has them
    )
