"""What the package knows about GPUs: which one holds a tensor, and the settings for each kind.

The one place where a compute capability or a version of Triton is compared with anything. What is said of a GPU here was found by
compiling for it (``fla_mesa/testing/compiled.py``, ``tests/ops/test_kernels_static.py``) and from the issues named below, not by running.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

KIB = 1024


class Gpu(NamedTuple):
    """A kind of GPU.

    Attributes:
        vendor: "nvidia" or "amd".
        capability: NVIDIA's compute capability, such as (9, 0) for sm_90; for others what PyTorch reports in its place.
    """

    vendor: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return (
            "an AMD GPU"
            if self.vendor == "amd"
            else f"a GPU of compute capability {'.'.join(map(str, self.capability))}"
        )


class Treatment(NamedTuple):
    """Settings for a kind of GPU.

    Attributes:
        why_no_kernels: What keeps Triton's kernels, fla's and this package's, from running on it; None if nothing.
        shared: Bytes of shared memory that a program may take.
        wide: Matrix instructions take 64 rows, so tiles have as many.
        most_stages: Stages of a pipelined loop that may be trusted.
        most_warps: Warps of a program on 64-row instructions that may be trusted.
    """

    why_no_kernels: str | None
    shared: int
    wide: bool
    most_stages: int
    most_warps: int


HOPPER = Gpu("nvidia", (9, 0))
SHARED = {(7, 5): 64, (8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227}  # KiB; all others have 99


def treatment(gpu: Gpu) -> Treatment:
    """Settings for this GPU with the installed Triton."""
    import triton

    major, minor = triton.__version__.split(".")[:2]
    return _treatment(gpu, (int(major), int(minor)))


@functools.cache
def _treatment(gpu: Gpu, triton: tuple[int, int]) -> Treatment:
    generation = gpu.capability[0]
    why_not = None
    if gpu.vendor != "nvidia":
        why_not = "needs an NVIDIA GPU"  # three of our kernels do not compile for AMD's, and none of either package's was tried
    elif gpu.capability < (8, 0):
        why_not = f"needs an NVIDIA GPU of compute capability 8.0 or more, and this is {gpu}"
    # Loops that add two products to one accumulator are miscompiled there when pipelined (triton-lang/triton issue 10821).
    most_stages = 1 if generation in (10, 11) and triton < (3, 8) else 2
    # No barrier follows the wait for a 64-row instruction of two warp groups (issue 11047; 3.9 emits it).
    most_warps = 4 if generation == 9 and triton < (3, 9) else 8
    # RTX 50 (12.x) has the instructions of 8.x, with sm_90's tiles it would spill a kilobyte a thread.
    return Treatment(why_not, SHARED.get(gpu.capability, 99) * KIB, generation in (9, 10, 11), most_stages, most_warps)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which takes CPU tensors."""
    try:
        from triton import knobs
    except ModuleNotFoundError:
        return False
    return bool(knobs.runtime.interpret)


def of(device: torch.device | Gpu) -> Gpu | None:
    """The kind of GPU of a device; in Triton's interpreter the CPU counts as sm_90. None for other devices.

    A kind stands for a device of that kind where kernels are only compiled.
    """
    if isinstance(device, Gpu):
        return device
    if device.type == "cuda":
        return Gpu("nvidia" if torch.version.hip is None else "amd", torch.cuda.get_device_capability(device))
    return HOPPER if device.type == "cpu" and interpreted() else None


def why_no_kernels(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run on this device, phrased to follow the name of a back end; None if they can."""
    gpu = of(device)
    if gpu is not None:
        return treatment(gpu).why_no_kernels
    if interpreted():
        return f"takes GPU tensors and, in the interpreter, CPU tensors; q is on device {str(device)!r}"
    how = " (CPU tensors in Triton's interpreter, with TRITON_INTERPRET=1)" if device.type == "cpu" else ""
    return f"takes GPU tensors{how}; q is on device {str(device)!r}"
