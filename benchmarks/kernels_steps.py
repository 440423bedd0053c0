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
import datetime
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import kernels_static

from fla_mesa.ops.triton.plan import CHUNK
from fla_mesa.testing import compiled as static
from fla_mesa.testing.machine_code import cost, inside, iteration, machine_code


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
                ours = job.constants.get("PRECISION", "").startswith("fp16")
                if not ours and not job.name.startswith("fla: CG"):
                    continue
                for config in static.configurations(job, arch):
                    if config.num_stages > 1 or (not ours and config != static.configurations(job, arch)[0]):
                        continue
                    compiled, use = static.compile_for(job, arch, config)
                    code, loops = machine_code(compiled.asm["cubin"])
                    a, b = iteration(code, loops, nested=ours)
                    rows = config.kwargs["BR"] if ours else CHUNK
                    step = cost(code[a : b + 1], config.num_warps, arch)
                    resident = round(use.occupancy * static.TARGETS[arch].warps_per_sm / config.num_warps)
                    lines.append(
                        f"| {job.name} | {size} | sm_{arch} | {rows} | {config.num_warps}, {config.num_stages} | {resident} "
                        f"| {use.spill_stores} | {step.instructions / rows:.1f} | {step.shared / rows:.1f} "
                        f"| {step.products / rows:.1f} | {step.barriers} |"
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
                for config in static.configurations(job, arch) if text in job.name else ():
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
    args = kernels_static.parse(parser)
    if args.loops is not None:
        kernels_static.write(loop_table(args.arch, args.size, args.loops), args.out)
        return
    versions = kernels_static.versions("triton", "flash-linear-attention")
    lines = [
        f"# A step of the solves, in cycles of a multiprocessor per row, {datetime.date.today().isoformat()}",
        "",
        f"bfloat16 inputs; compiled without a GPU by {versions}. Made by `python benchmarks/kernels_steps.py`, whose docstring",
        "says what is counted. Spilled bytes are those of the whole kernel. The first row of each solve is its default configuration.",
        "",
        *table(args.arch, args.size),
    ]
    kernels_static.write(lines, args.out)


if __name__ == "__main__":
    main()
