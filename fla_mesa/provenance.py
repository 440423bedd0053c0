"""What results were made with: versions, machine, commit."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fla_mesa.version import __version__


def versions() -> dict[str, str | None]:
    """Versions of the packages that affect results; None if not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "fla_mesa": __version__}
    for name in ("torch", "transformers", "accelerate", "flash-linear-attention", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the processor with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu ({_processor()}, {torch.get_num_threads()} threads)"
    return str(device)


def _processor() -> str:
    """The processor's name according to Linux, or else to Python."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """Commit of the checkout that this package runs from, with ``-dirty`` if files differ from it; None outside a checkout."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", here.name
        )  # installed into a folder of somebody's own repository, it is not in it
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
