"""What the files that name versions say agrees with each other and with what is installed."""

import re
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


def test_make_test_triton_uses_the_triton_of_the_cuda_build():
    asked = [line for line in requires("torch") or [] if re.match(r"triton\b", line)]
    if not asked or torch.__version__.partition("+")[0] != CONSTRAINTS["torch"]:
        pytest.skip(
            f"torch {torch.__version__} is not the CUDA build of the version in constraints.txt: it asks for no triton"
        )
    (version,) = re.findall(r"^TRITON_OF_TORCH := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert re.match(r"triton==([\d.]+)", asked[0])[1] == version
