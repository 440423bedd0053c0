"""What the benchmarks on a CPU share: measuring in turns, and a results file that says where and when."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

import fla_mesa

RESULTS = Path(__file__).parent / "results"


def seconds(call: Callable[[], object]) -> float:
    """One call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_turns(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Every call once a round, after a round that does not count: other load on the machine hits all alike."""
    results: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            value = call()
            if round_:
                results[name].append(value)
    return results


def spread(values: list[float]) -> str:
    """Median and range of ratios."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def ratios(over: list[float], under: list[float]) -> list[float]:
    """Of each round."""
    return [a / b for a, b in zip(over, under, strict=True)]


@functools.cache
def circumstances() -> str:
    """Machine, versions, commit and date."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "?",
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    return (
        f"{datetime.date.today()}, {cpu}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, fla_mesa {fla_mesa.__version__} at {commit or 'no commit'}"
    )


def write(theme: str, text: str) -> None:
    """Puts a table into ``benchmarks/results/<theme>_cpu_<date>.md``."""
    path = RESULTS / f"{theme}_cpu_{datetime.date.today()}.md"
    path.write_text(text)
    print(f"written: {path.relative_to(RESULTS.parent.parent)}")
