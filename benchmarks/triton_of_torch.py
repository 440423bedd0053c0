"""Print the Triton that the CUDA build of the torch in constraints.txt asks for, from the metadata of its wheel, as pip takes it.

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

from packaging.requirements import Requirement

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def pinned_torch(constraints: str) -> str:
    """The version in a line ``torch==2.13.0``."""
    found = re.search(r"^torch==([\d.]+)", constraints, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{CONSTRAINTS} pins no torch")
    return found[1]


def asked_for(report: str) -> str:
    """What pip's report says that torch asks for, ``triton==3.7.1`` or ``triton~=3.9.0``; several lines may, each under a condition."""
    (wheel,) = json.loads(report)["install"]
    lines = map(Requirement, wheel["metadata"].get("requires_dist", ()))
    asked = {f"triton{line.specifier}" for line in lines if line.name == "triton"}
    if len(asked) != 1:
        raise SystemExit(f"torch {wheel['metadata']['version']} asks for: {', '.join(sorted(asked)) or 'no triton'}")
    return asked.pop()


def main() -> None:
    # "===" takes this version without a suffix such as "+cpu".
    torch = f"torch==={pinned_torch(CONSTRAINTS.read_text())}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
    line = [*pip, "--ignore-installed", "--no-deps", "--report", "-", torch]
    print(asked_for(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout))


if __name__ == "__main__":
    main()
