"""Print the version of Triton that the CUDA build of the torch in constraints.txt asks for, from the metadata of its wheel.

    python benchmarks/triton_of_torch.py

Tests of the kernels run with that one as well (``make test-triton``): it is what GPU machines have, and where the index serves a build of
torch without CUDA, nothing asks for it. Only metadata is downloaded.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def pinned_torch(constraints: str) -> str:
    """The version in a line ``torch==2.13.0``."""
    found = re.search(r"^torch==([\d.]+)", constraints, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{CONSTRAINTS} pins no torch")
    return found[1]


def asked_for(report: str) -> str:
    """The version of Triton in pip's report on torch; several lines may ask for it, under conditions, and for the same."""
    (wheel,) = json.loads(report)["install"]
    versions = {
        found[1]
        for line in wheel["metadata"].get("requires_dist", ())
        if (found := re.match(r"triton\s*==\s*([\d.]+)", line))
    }
    if len(versions) != 1:
        raise SystemExit(
            f"torch {wheel['metadata']['version']} asks for these versions of triton: {sorted(versions) or 'none'}"
        )
    return versions.pop()


def main() -> None:
    # "===" takes this version without a suffix such as "+cpu".
    torch = f"torch==={pinned_torch(CONSTRAINTS.read_text())}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
    line = [*pip, "--ignore-installed", "--no-deps", "--report", "-", torch]
    print(asked_for(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout))


if __name__ == "__main__":
    main()
