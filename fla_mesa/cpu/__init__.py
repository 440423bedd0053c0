"""Pure-PyTorch stand-ins for flash-linear-attention's Triton kernels, so that fla's models run on CPU tensors.

    import fla_mesa.cpu
    fla_mesa.cpu.enable()          # `import fla_mesa` does this by itself where there is no accelerator
    fla_mesa.cpu.disable()         # and fla is as it was

After that fla's models of the covered families train, prefill, decode and generate on the CPU. A call is taken over only
when its first tensor lies on the CPU: calls on GPU tensors run fla's own kernels as before. `python -m fla_mesa.cpu` prints which function
is replaced by which.
"""

from __future__ import annotations

import os

import torch

from fla_mesa.cpu.allocator import keep_freed_memory
from fla_mesa.cpu.registry import covered, is_installed, uninstall
from fla_mesa.fla_api import require_supported_fla

__all__ = ["accelerator_available", "covered", "disable", "enable", "is_enabled", "require_supported_fla"]

# Devices known to PyTorch as accelerators for which Triton has no compiler.
_WITHOUT_TRITON = ("cpu", "mps")


def accelerator_available() -> bool:
    """Whether fla's Triton kernels can run in this process.

    They can where there is a device that Triton compiles for, or where TRITON_INTERPRET=1 asks for Triton's interpreter, which runs them
    on CPU tensors.
    """
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        return True
    device = torch.accelerator.current_accelerator(check_available=True)
    return device is not None and device.type not in _WITHOUT_TRITON


def enable() -> None:
    """Replace fla's Triton kernels by PyTorch on CPU tensors, in every fla model, new or existing.

    The C library keeps the memory of freed tensors for the next ones from then on (`fla_mesa.cpu.allocator`). Calling
    it again does nothing.

    Raises:
        ImportError: flash-linear-attention is of another version than this package is for, or one of its functions that has a stand-in
            takes other arguments than the stand-in does.
        RuntimeError: FLA_DISABLE_BACKEND_DISPATCH=1 is set, which makes fla ignore every registered back end.
    """
    if is_enabled():
        return
    require_supported_fla()
    # Importing these modules imports fla, which an unsupported version may not survive: only after the check.
    from fla_mesa.cpu import (  # noqa: F401
        activations,
        attention,
        convolution,
        delta_rule,
        hgrn,
        linear_attention,
        losses,
        mamba2,
        mesa_net,
        missing,
        norms,
        rotary,
    )
    from fla_mesa.cpu.registry import install

    install()
    keep_freed_memory()


def disable() -> None:
    """Undo `enable()` and restore fla's functions, methods and modules.

    Those that were loaded since are among them. (The C
    library goes on keeping freed memory, which changes no result.) Where there is nothing to undo it does nothing.
    """
    uninstall()


def is_enabled() -> bool:
    """Whether the stand-ins are in place."""
    return is_installed()
