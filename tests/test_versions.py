"""What the files that name versions say agrees with each other and with what is installed."""

import json
import runpy
from importlib.metadata import requires

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.project import PROJECT, ROOT


def constraints(name: str) -> dict[str, str]:
    """Versions by package, those for this Python."""
    lines = [Requirement(line) for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    here = [line for line in lines if line.marker is None or line.marker.evaluate()]
    return {canonicalize_name(line.name): str(line.specifier).removeprefix("==") for line in here}


CONSTRAINTS = constraints("constraints.txt")


def test_torch_decides_which_triton_there_is():
    """Its CUDA build asks for exactly one version: another one in constraints.txt, and nothing can be installed on a machine with a GPU."""
    assert "triton" not in CONSTRAINTS


def test_make_test_triton_finds_the_triton_of_the_cuda_build():
    """From pip's report, of which this is the part that is read; several platforms may ask for it."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "triton_of_torch.py"))
    assert script["pinned_torch"]((ROOT / "constraints.txt").read_text()) == CONSTRAINTS["torch"]
    asks = ["filelock", 'triton==3.7.1; platform_system == "Linux"', 'triton==3.7.1; platform_machine == "x86_64"']
    report = json.dumps({"install": [{"metadata": {"version": "2.13.0", "requires_dist": asks}}]})
    assert script["asked_for"](report) == "triton==3.7.1"
    assert script["asked_for"](report.replace("==3.7.1", "~=3.9.0")) == "triton~=3.9.0"
    with pytest.raises(SystemExit, match=r"torch 2.13.0 asks for: no triton"):
        script["asked_for"](report.replace("triton==", "other=="))
    with pytest.raises(SystemExit, match=r"torch 2.13.0 asks for: triton==3.7.1, triton==3.8.0"):
        script["asked_for"](report.replace("==3.7.1", "==3.8.0", 1))


def test_the_installed_cuda_build_asks_for_one_triton():
    asked = {line.specifier for line in map(Requirement, requires("torch") or []) if line.name == "triton"}
    if not asked:
        pytest.skip(f"torch {torch.__version__} is not a CUDA build: it asks for no triton")
    assert len(asked) == 1


def asked(*extras: str) -> dict[str, Requirement]:
    """What pyproject.toml asks for, with these extras."""
    optional = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in optional[extra])]
    return {canonicalize_name(line.name): line for line in map(Requirement, lines)}


def test_what_is_pinned_is_allowed():
    for name, line in asked(*PROJECT["optional-dependencies"]).items():
        assert name not in CONSTRAINTS or CONSTRAINTS[name] in line.specifier, (
            f"{line}; constraints.txt has {CONSTRAINTS[name]}"
        )


def test_the_oldest_versions_are_the_floors():
    """What `make test-oldest` installs is what pyproject.toml allows at least."""
    oldest = constraints("constraints-oldest.txt")
    for name, line in asked("eval", "test").items():
        floors = [Version(part.version) for part in line.specifier if part.operator in (">=", "==")]
        assert floors == ([Version(oldest.pop(name))] if name in oldest else []), (
            f"{line}; constraints-oldest.txt differs"
        )
    assert set(oldest) == {"fla-core"}  # the other half of flash-linear-attention
