"""What the files that name versions say agrees with each other and with what is installed."""

import json
import re
import runpy
from importlib.metadata import requires
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
CONSTRAINTS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)


def test_torch_decides_which_triton_there_is():
    """Its CUDA build asks for exactly one version: another one in constraints.txt, and nothing can be installed on a machine with a GPU."""
    assert "triton" not in CONSTRAINTS


def test_make_test_triton_finds_the_triton_of_the_cuda_build():
    """From pip's report, of which this is the part that is read; several platforms may ask for it."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "triton_of_torch.py"))
    assert script["pinned_torch"]((ROOT / "constraints.txt").read_text()) == CONSTRAINTS["torch"]
    asks = ["filelock", 'triton==3.7.1; platform_system == "Linux"', 'triton==3.7.1; platform_machine == "x86_64"']
    report = json.dumps({"install": [{"metadata": {"version": "2.13.0", "requires_dist": asks}}]})
    assert script["asked_for"](report) == "3.7.1"
    with pytest.raises(SystemExit, match="asks for these versions of triton: none"):
        script["asked_for"](report.replace("triton==", "other=="))


def test_the_installed_cuda_build_asks_for_one_triton():
    asked = [line for line in requires("torch") or [] if re.match(r"triton\b", line)]
    if not asked:
        pytest.skip(f"torch {torch.__version__} is not a CUDA build: it asks for no triton")
    assert len({re.match(r"triton==([\d.]+)", line)[1] for line in asked}) == 1
