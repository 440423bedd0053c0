"""Registers, spills, shared memory, occupancy and matrix instructions of every kernel, compiled for GPUs that need not be there.

    python benchmarks/kernels_static.py [--arch 80 86 90] [--size 64 128 256] [--dtype bfloat16] [--all-configs] [--out FILE]

Triton compiles each kernel for the target and the ptxas that comes with it reports what it used. fla's kernels of the same op are
in the same table. Rows are (kernel, head size, warps, stages) for every target; the first configuration of each kernel is the
default one, the others are what autotuning may choose.

Needs triton and flash-linear-attention, no GPU and no driver. Run it without TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

from triton.runtime.errors import PTXASError

warnings.filterwarnings("ignore", message=".*Triton is not supported on current platform.*")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fla_mesa.testing.compiled import TARGETS, TYPES, compile_for, configurations, describe, fla_jobs, our_jobs  # noqa: E402


def table(archs: list[int], sizes: list[int], dtype: str, all_configs: bool) -> list[str]:
    """The table in Markdown, line by line."""
    lines = [
        "| kernel | K = V | warps, stages | target | registers | spill bytes | shared KiB | occupancy | matrix instructions |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size in sizes:
        for arch in archs:
            jobs = [*our_jobs(size, dtype, arch), *(fla_jobs(size, dtype) if size <= 128 else ())]
            for job in jobs:
                for config in configurations(job, arch)[: None if all_configs else 1]:
                    head = f"| {job.name} | {size} | {describe(config)} | sm_{arch} |"
                    try:
                        _, use = compile_for(job, arch, config)
                    except PTXASError as error:
                        lines.append(f"{head} does not compile: {str(error).strip().splitlines()[0][:120]} | | | | |")
                        continue
                    over = " (over the limit)" if use.shared > TARGETS[arch].shared_per_block else ""
                    kind = f"{use.wgmma} wgmma, " if use.wgmma else ""
                    lines.append(
                        f"{head} {use.registers} | {use.spill_stores} | {use.shared / 1024:.0f}{over} "
                        f"| {use.occupancy:.0%} | {kind}{use.mma} mma |"
                    )
                    print(lines[-1], file=sys.stderr, flush=True)
    return lines


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line of a benchmark that compiles: with --out, and not in Triton's interpreter."""
    parser.add_argument("--out", type=Path, help="Markdown file to write; standard output if left out")
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("unset TRITON_INTERPRET: the interpreter compiles nothing")
    return args


def versions(*packages: str) -> str:
    """Names of packages, each with its version."""
    return ", ".join(f"{name} {version(name)}" for name in packages)


def write(lines: list[str], out: Path | None) -> None:
    """To a file, or to standard output where none is named."""
    text = "\n".join(lines) + "\n"
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
    else:
        print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 86, 90], choices=sorted(TARGETS))
    parser.add_argument("--size", type=int, nargs="+", default=[64, 128], help="K = V, up to 256")
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(TYPES))
    parser.add_argument("--all-configs", action="store_true", help="every configuration that autotuning may choose")
    args = parse(parser)
    if any(not 1 <= size <= 256 for size in args.size):
        parser.error(f"--size must be between 1 and 256; got {args.size}")
    made_with = versions("triton", "torch", "flash-linear-attention")
    lines = [
        f"# Static figures of the kernels, {args.dtype} inputs",
        "",
        f"Compiled without a GPU on {platform.machine()}; {made_with}. Made by `{shlex.join(['python', *sys.argv])}`.",
        "Spill bytes are stores per thread; occupancy is the share of a multiprocessor's warps that can be resident.",
        "",
        *table(args.arch, args.size, args.dtype, args.all_configs),
    ]
    write(lines, args.out)


if __name__ == "__main__":
    main()
