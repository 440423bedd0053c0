"""Whether a change of the code has changed a figure: results of the same commands before and after it.

    fla-mesa compare ... --output_dir before/text        (and sweeps; then the same with the changed code, into another folder)
    python benchmarks/same_figures.py before after [--tolerance 1e-6]

Compares every report.json, suite.json, sweep.json, inspect.json, comparison.json and measured.json of the first folder with its namesake
in the second, all but times, memory, and where and when they were made. Keys that only the second has are no difference. Exits with 1 if
anything differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from fla_mesa.json_files import read_json

FILES = {"report.json", "suite.json", "sweep.json", "inspect.json", "comparison.json", "measured.json"}
LEFT_OUT = {"command", "commit", "trained_at", "machine", "versions", "memory_mib", "training_peak_bytes"}
LEFT_OUT |= {"prefill_ms", "decode_ms", "sections"}  # a report's sections say the same figures in words
LEFT_OUT |= {f"{stage}_tokens_per_second" for stage in ("training", "prefill", "decode")}


def differences(before: object, after: object, at: str, tolerance: float) -> Iterator[str]:
    """What differs, a line each; numbers may differ by `tolerance`, relative to the larger."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() - LEFT_OUT:
            if key in after:
                yield from differences(before[key], after[key], f"{at}/{key}", tolerance)
            else:
                yield f"{at}/{key}: gone"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{at}/{i}", tolerance)
    elif isinstance(before, float) and isinstance(after, float):
        if abs(before - after) > tolerance * max(abs(before), abs(after)):
            yield f"{at}: {before!r} and now {after!r}"
    elif before != after:
        yield f"{at}: {before!r} and now {after!r}"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative (default: %(default)s)")
    given = parser.parse_args()
    names = [path.relative_to(given.before) for path in sorted(given.before.rglob("*.json")) if path.name in FILES]
    if not names:
        parser.error(f"before: {given.before} holds no {', '.join(sorted(FILES))}")
    found = []
    for name in names:
        if (given.after / name).exists():
            pair = read_json(given.before / name), read_json(given.after / name)
            found += differences(*pair, str(name), given.tolerance)
        else:
            found.append(f"{name}: gone")
    print("\n".join([*found, f"{len(names)} files, {len(found)} differences"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
