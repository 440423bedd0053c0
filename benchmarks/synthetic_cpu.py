"""How long the synthetic suites take to generate.

    python benchmarks/synthetic_cpu.py [--sequences 10000] [--rounds 5]

Each suite at its paper's setting, MQAR also at length 256 with 16 and 64 pairs: seconds, and that over the time to draw as many random
integers, measured in turns. Writes benchmarks/results/synthetic_cpu_<date>.md.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import timing

from fla_mesa.data import synthetic

SPECS = ["mqar:length=256,num_pairs=16", "mqar:length=256,num_pairs=64"]
SPECS += [name for name in synthetic.suites() if name.startswith("mad-")]
SPECS += ["regbench", "own-haystack-niah-1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.sequences < 1 or args.rounds < 1:
        parser.error("--sequences and --rounds must be at least 1")
    lines = [
        "# Generating the synthetic suites",
        "",
        timing.circumstances(),
        f"{args.sequences:,} sequences of the training split, {args.rounds} rounds in turns with as many random integers.",
        "",
        "| suite | tokens a sequence | seconds (range) | over random integers |",
        "| --- | ---: | ---: | ---: |",
    ]
    for spec in SPECS:
        suite = synthetic.get(spec)
        task = suite.train[0][0]
        rng = np.random.default_rng(0)
        times = timing.in_turns(
            {
                "suite": lambda task=task: timing.seconds(lambda: task.generate("train", args.sequences, 0)),
                "integers": lambda task=task, rng=rng: timing.seconds(
                    lambda: rng.integers(0, task.symbols, size=(args.sequences, task.columns))
                ),
            },
            args.rounds,
        )
        ratio = statistics.median(timing.ratios(times["suite"], times["integers"]))
        lines.append(f"| {spec} | {task.columns} | {timing.spread(times['suite'])} | {ratio:.0f} |")
        print(lines[-1], flush=True)
    timing.write("synthetic", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
