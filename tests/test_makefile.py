"""What make says where it cannot go on: no such Python, too old a one, no network; and a path with spaces is no obstacle."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.project import ROOT


@pytest.fixture
def checkout(tmp_path) -> Path:
    """What make reads, in a folder with spaces in its name and without an environment."""
    folder = tmp_path / "a path with spaces"
    (folder / "fla_mesa").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copy(ROOT / "fla_mesa" / "__init__.py", folder / "fla_mesa")
    return folder


def make(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE"))} | environment
    return subprocess.run(["make", *words], cwd=folder, env=outside, capture_output=True, text=True, timeout=300)


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("target", ["demo", "test", "docs", "lint"])
def test_a_python_that_is_not_there(checkout, target):
    done = make(checkout, target, "PYTHON=python3.99")
    assert done.returncode == 2 and "there is no python3.99 here" in done.stderr
    assert f"make {target} PYTHON=python3.11" in done.stderr


def test_a_python_that_is_too_old(checkout, tmp_path):
    old = program(tmp_path / "python 3.9", 'if [ "$1" = -V ]; then echo Python 3.9.2; else exit 1; fi')
    done = make(checkout, "test", f"PYTHON={old}")
    assert done.returncode == 2 and "needs Python 3.10 or newer" in done.stderr and "Python 3.9.2" in done.stderr
    assert not (checkout / ".venv").exists()


def test_no_network_from_a_path_with_spaces(checkout, tmp_path):
    """The environment is made; pip finds nothing, and what to do is said."""
    done = make(checkout, "demo", PIP_NO_INDEX="1", PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS=str(tmp_path))
    assert (checkout / ".venv" / "bin" / "python").exists() and not (checkout / ".venv" / "demo").exists()
    assert done.returncode == 2 and "pip could not install what .venv/demo needs" in done.stderr
    assert "PIP_FIND_LINKS" in done.stderr
