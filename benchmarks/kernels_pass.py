"""What all kernels of a training step cost, ours and fla's: cycles counted in machine code, and bytes. No GPU is needed.

    python benchmarks/kernels_pass.py [--size 64 128] [--out FILE]

A kernel takes the longer of two times, in cycles of a multiprocessor for a position of a head on sm_90; a training step takes their sum.

- Cycles: the largest of instructions, shared memory and products (``kernels_steps.py`` says how they are counted), each summed over the
  kernel's loops as often as `passes` says that they run. A kernel whose machine code has other loops is an error. What counts is the
  default configuration or, of solves whose tiles may have more rows than that one's, the cheapest.
- Bytes: each tensor that the kernel takes, moved once, at 14.2 bytes a cycle (an H100's published 3.35 TB/s over 132 multiprocessors at
  1.79 GHz).

That is a bound on speed and no time: latency, barriers, caches and what of the two times does not overlap are left out. So are, for
both ops, sums of gates and normalisations; for ours the sum over each key that marks those that are not finite.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import kernels_static
from triton import Config

from fla_mesa.ops.triton.plan import CHUNK
from fla_mesa.testing import compiled as static
from fla_mesa.testing.machine_code import cost, inside, iteration, machine_code

ARCH = 90
BYTES_A_CYCLE = 14.2
# Steps of the slowest row of a tile of 64 and residuals computed anew, the start's among them, at the default tolerance of 1e-3, in the
# interpreter: bfloat16 inputs, keys with a common mean of a third of their spread, gates from 0.9 to 1, spread lamb; of three draws,
# forward and backward, 8 or 9. fla always takes 30.
STEPS, RESIDUALS, FLA_STEPS = {64: 9, 128: 9}, 2, 30
# Forward and backward compute the states.
LAUNCHES = {"chunk states": 2, "fla: chunk states": 2}
BYTES = {"*fp32": 4, "*i32": 4, "*bf16": 2, "*fp16": 2}
# What a position of a head has of each tensor. Of what is not named, a sequence or a head has one, which counts nothing.
STATES = {"h_kk", "h_kv", "h", "dh", "dh_kk", "dh_kv"}
ROWS = {"q", "k", "v", "o", "do", "x", "y", "dx", "r", "dq", "dk", "dv", "q_final", "q_star", "dq_final", "dk_beta"}
NUMBERS = {"g", "beta", "iterations", "residual", "da", "da_rows", "dg", "dbeta"}


def jobs(size: int) -> Iterator[static.Job]:
    """What a training step launches."""
    for job in (*static.our_jobs(size, "bfloat16", ARCH), *static.fla_jobs(size, "bfloat16")):
        if "decoding" not in job.name:
            yield job


def passes(job: static.Job, rows: int) -> list[float]:
    """How often each loop runs for a chunk of positions of a head, in the order of the machine code; first what is outside of loops."""
    c = job.constants
    K, V = c["K"], c["V"]

    def blocks(size: int) -> float:
        """Blocks of keys that a tile reads, on average over the tiles of a chunk: none after its last row."""
        ends = range(rows, CHUNK + 1, rows)
        return sum(-(-end // size) for end in ends) / len(ends)

    # A program has a block of one of the two states, for all chunks; of fla's, of both.
    if job.name in ("chunk states", "chunk states, backward"):
        return [0, c["N_K"] * c["N_CK"], c["N_K"] * c["N_CV"]]
    if job.name == "fla: chunk states":
        return [0, K / c["BK"] * V / c["BV"]]
    if job.name.startswith("fla: CG"):
        return [1, FLA_STEPS]
    if job.name.startswith("fla: "):
        return [1]
    if job.name == "keys and values, backward":
        d, n = c["BD"], c["BN"]
        if K == 128:  # where the compiler unrolls the others
            return [1, K / d, K / n, V / n]
        return [1, K / d, V / d, K / n, K / n * V / d, K / n * K / d, V / n, V / n * K / d]
    solve = [blocks(c["BT"] // 2), RESIDUALS, STEPS[K], 0]
    if job.name == "solve + output":
        d, n = K / c["BD"], V / c["BV"]
        counts = [1, *solve, n * d, n * blocks(c["BS"]), n * blocks(c["BS"]) * d]
    else:
        counts = [1, V / c["BD"], blocks(c["BS"]), *solve, K / c["BE"]]
    return [CHUNK / rows * n for n in counts]


def moved(job: static.Job, size: int) -> float:
    """Bytes of a kernel's tensors for a position of a head."""
    total = 0.0
    for name in static.parameters(job):
        if job.constants.get(name, 0) is None or job.types.get(name) not in BYTES:
            continue
        elements = size * size / CHUNK if name in STATES else size if name in ROWS else 1 if name in NUMBERS else 0
        if name == "dlamb":  # a row for each chunk
            elements = size / CHUNK
        total += elements * BYTES[job.types[name]]
    return total


def cycles(job: static.Job, config: Config) -> tuple[list[float], int]:
    """Instructions, shared memory and products of a kernel, and the bytes that it spills."""
    compiled, use = static.compile_for(job, ARCH, config)
    code, found = machine_code(compiled.asm["cubin"])
    loops = {(a, max(y for x, y in found if x == a)) for a, b in found if b > a}  # waits for barriers are loops of one
    if job.name.startswith("solve"):
        # A jump back over the rounds is none: the code of what follows them may lie before.
        steps = iteration(code, found, nested=True)
        loops = {x for x in loops if not any(inside(steps, y) and inside(y, x) for y in loops)}
        # The float32 iteration for what rounds leave is in the loop after theirs; of these inputs they leave nothing.
        rounds = next(x for x in loops if inside(steps, x))
        rest = min(x for x in loops if x > rounds and not inside(x, rounds))
        loops = {x for x in loops if not inside(x, rest)}
    order = [(0, len(code) - 1), *sorted(loops)]
    rows = config.kwargs["BR"] if job.name.startswith("solve") else CHUNK
    counts = passes(job, rows)
    if len(counts) != len(order):
        raise RuntimeError(f"{job.name}, {static.describe(config)}: {len(order) - 1} loops, {len(counts) - 1} known")
    total = [0.0, 0.0, 0.0]
    for loop, count in zip(order, counts, strict=True):
        within = [x for x in order[1:] if inside(x, loop)]
        own = [code[i] for i in range(loop[0], loop[1] + 1) if not any(a <= i <= b for a, b in within)]
        step = cost(own, config.num_warps, ARCH)
        for i, x in enumerate((step.instructions, step.shared, step.products)):
            total[i] += count * x / CHUNK
    return total, use.spill_stores


def table(sizes: list[int]) -> list[str]:
    lines = [
        "| kernel | K = V | warps, stages | spilled bytes | instructions | shared memory | products | bytes / 14.2 | launches | cycles |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size in sizes:
        sums = {"fla_mesa": 0.0, "fla": 0.0}
        for job in jobs(size):
            theirs, launches = job.name.startswith("fla: "), LAUNCHES.get(job.name, 1)
            time = moved(job, size) / BYTES_A_CYCLE
            default, *others = static.configurations(job, ARCH)
            larger = [c for c in others if c.kwargs.get("BR", 0) > default.kwargs.get("BR", 0) and c.num_stages == 1]
            rows = [
                (launches * max(*counted, time), static.describe(config), spilled, counted)
                for config in (default, *larger)
                for counted, spilled in [cycles(job, config)]
            ]
            total, config, spilled, counted = min(rows)
            sums["fla" if theirs else "fla_mesa"] += total
            numbers = " | ".join(f"{x:.0f}" for x in (*counted, time))
            lines.append(f"| {job.name} | {size} | {config} | {spilled} | {numbers} | {launches} | {total:.0f} |")
            print(lines[-1], file=sys.stderr, flush=True)
        # fla's gradients of G and H, each from one product by a kernel that its ops share: rows of 16 bits in, a state of 16 bits out.
        time = (2 * size + 2 * size + 4 + 2 * size * size / CHUNK) / BYTES_A_CYCLE
        sums["fla"] += 2 * time
        lines.append(f"| fla: gradients of a state | {size} | | | | | | {time:.0f} | 2 | {2 * time:.0f} |")
        lines += [f"| **{name}, all** | {size} | | | | | | | | **{total:.0f}** |" for name, total in sums.items()]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[64, 128], choices=[64, 128], help="K = V")
    args = kernels_static.parse(parser)
    versions = kernels_static.versions("triton", "flash-linear-attention")
    lines = [
        f"# A training step, in cycles of a multiprocessor for a position of a head, {datetime.date.today().isoformat()}",
        "",
        f"sm_90, bfloat16 inputs; compiled without a GPU by {versions}. Made by `python benchmarks/kernels_pass.py`, whose",
        "docstring says what is counted and what is left out. A kernel's cycles are the largest of its four numbers, times its launches.",
        "",
        *table(args.size),
    ]
    kernels_static.write(lines, args.out)


if __name__ == "__main__":
    main()
