"""What the benchmarks on a CPU share: measuring in turns, and a results file that says where and when."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fla_mesa import provenance

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
    installed = ", ".join(f"{name} {version}" for name, version in provenance.versions().items())
    device = provenance.device_name(torch.device("cpu"))
    return f"{datetime.date.today()}, {device}, {os.cpu_count()} cores, {platform.system()}, {installed}, commit {provenance.commit()}"


def write(theme: str, text: str) -> None:
    """Puts a table into ``benchmarks/results/<theme>_cpu_<date>.md``."""
    path = RESULTS / f"{theme}_cpu_{datetime.date.today()}.md"
    path.write_text(text)
    print(f"written: {path.relative_to(RESULTS.parent.parent)}")
