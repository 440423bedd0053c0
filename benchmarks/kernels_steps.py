"""What a step of the solvers' iteration costs, read off the machine code of kernels compiled for GPUs that need not be there.

    python benchmarks/kernels_steps.py [--arch 80 90] [--size 64 128] [--out FILE]
    python benchmarks/kernels_steps.py --loops "keys and values" --arch 90 --size 128

A count of multiply-adds says nothing of what feeds them. Here the innermost loop of each solve that multiplies matrices is taken apart:
instructions to issue (4 a cycle), bytes to and from shared memory, spilled registers included (128 a cycle), and matrix products (2,048
multiply-adds of 16 bits a cycle on sm_90 by wgmma, 1,024 on sm_80; mma on sm_90 reaches 63 % of wgmma: Luo et al., arXiv 2402.13499). All
in cycles of a multiprocessor per row and step; the largest is the least time that a step can take. What it leaves out: latency, barriers
(listed) and whatever the caches do.

With --loops, every loop of the kernels whose names contain that text, ours and fla's, in cycles a tile and pass; nested loops are indented
and not part of those around them. How often a loop runs, the machine code does not say.

Needs triton, with the nvdisasm that comes with it, and flash-linear-attention; no GPU and no driver. Run it without TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import triton

sys.path.insert(0, str(Path(__file__).parent))

import kernels_static as static

ISSUED = 4  # instructions a cycle
SHARED = 128  # bytes a cycle
WIDTH = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}  # bytes a thread, 4 where none is named
MMA = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8}  # multiply-adds of 16 bits; of tf32 they count twice


@dataclass(frozen=True)
class Step:
    """Cycles of a multiprocessor for one tile and step."""

    instructions: float
    shared: float
    products: float
    barriers: int


def machine_code(cubin: bytes) -> tuple[list[str], list[tuple[int, int]]]:
    """Instructions, and loops among them as (first, last)."""
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
    """Of one pass over these instructions by all warps of a tile."""
    cycles: collections.Counter[str] = collections.Counter()
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
    """The loop of conjugate gradients: the first innermost one with matrix products, within another or not."""
    products = [(a, b) for a, b in loops if any("MMA" in x for x in code[a : b + 1])]

    return min(
        loop
        for loop in products
        if not any(inside(other, loop) for other in products)
        and any(inside(loop, other) for other in products) == nested
        and any(x.startswith("SHFL") for x in code[loop[0] : loop[1] + 1])  # row sums: no other loop has them
    )


def table(archs: list[int], sizes: list[int]) -> list[str]:
    lines = [
        "| solve | K = V | target | rows | warps, stages | tiles at once | spilled bytes "
        "| instructions | shared memory | products | barriers |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size in sizes:
        for arch in archs:
            jobs = [*static.our_jobs(size, "bfloat16", arch), *static.fla_jobs(size, "bfloat16")]
            for job in jobs:
                ours = job.constants.get("PRECISION") == "fp16"
                if not ours and not job.name.startswith("fla: CG"):
                    continue
                for config in static.configurations(job, 90):
                    if config.num_stages > 1 or (not ours and config != static.configurations(job, 90)[0]):
                        continue
                    compiled, use = static.compile_for(job, arch, config)
                    code, loops = machine_code(compiled.asm["cubin"])
                    a, b = iteration(code, loops, nested=ours)
                    rows = job.constants["BR"] * config.kwargs["MERGE"] if ours else static.CHUNK
                    step = cost(code[a : b + 1], config.num_warps, arch)
                    resident = round(use.occupancy * static.TARGETS[arch].warps_per_sm / config.num_warps)
                    lines.append(
                        f"| {job.name} | {size} | sm_{arch} | {rows} | {static.describe(config)} | {resident} | {use.spill_stores} "
                        f"| {step.instructions / rows:.1f} | {step.shared / rows:.1f} | {step.products / rows:.1f} | {step.barriers} |"
                    )
                    print(lines[-1], file=sys.stderr, flush=True)
    return lines


def loop_table(archs: list[int], sizes: list[int], text: str) -> list[str]:
    """All loops of some kernels, what is outside of them first."""
    lines = [
        "| kernel | instructions of a warp | instructions | shared memory | products | barriers |",
        "| --- " * 6 + "|",
    ]
    for size in sizes:
        for arch in archs:
            for job in [*static.our_jobs(size, "bfloat16", arch), *static.fla_jobs(size, "bfloat16")]:
                for config in static.configurations(job, 90) if text in job.name else ():
                    compiled, use = static.compile_for(job, arch, config)
                    code, loops = machine_code(compiled.asm["cubin"])
                    lines.append(
                        f"| **{job.name}**, {size}, sm_{arch}, warps and stages {static.describe(config)}, "
                        f"{use.spill_stores} bytes spilled | | | | | |"
                    )
                    # Of loops that share their first instruction, the longest; waits for barriers are loops of one.
                    loops = {(a, max(y for x, y in loops if x == a)) for a, b in loops if b > a}
                    for loop in sorted({(0, len(code) - 1)} | loops):
                        parts = [other for other in loops if inside(other, loop)]
                        own = [code[i] for i in range(loop[0], loop[1] + 1) if not any(a <= i <= b for a, b in parts)]
                        step = cost(own, config.num_warps, arch)
                        depth = sum(inside(loop, other) for other in loops)
                        lines.append(
                            f"| {'&emsp;' * depth}{loop[0]} to {loop[1]} | {len(own)} | {step.instructions:.0f} | {step.shared:.0f} "
                            f"| {step.products:.0f} | {step.barriers} |"
                        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90], choices=[80, 90])
    parser.add_argument("--size", type=int, nargs="+", default=[64, 128], choices=[64, 128], help="K = V")
    parser.add_argument(
        "--loops", metavar="TEXT", help='list the loops of the kernels whose names contain this, "" for all'
    )
    parser.add_argument("--out", type=Path, help="Markdown file to write; standard output if left out")
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("unset TRITON_INTERPRET: the interpreter compiles nothing")
    if args.loops is not None:
        static.write(loop_table(args.arch, args.size, args.loops), args.out)
        return
    versions = ", ".join(f"{name} {version(name)}" for name in ("triton", "flash-linear-attention"))
    lines = [
        f"# A step of the solves, in cycles of a multiprocessor per row, {datetime.date.today().isoformat()}",
        "",
        f"bfloat16 inputs; compiled without a GPU by {versions}. Made by `python benchmarks/kernels_steps.py`, whose docstring",
        "says what is counted. Spilled bytes are those of the whole kernel. The first row of each solve is its default configuration.",
        "",
        *table(args.arch, args.size),
    ]
    static.write(lines, args.out)


if __name__ == "__main__":
    main()
