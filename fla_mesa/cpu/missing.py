"""Names the missing function when fla launches a Triton kernel without a stand-in on a machine without a driver."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from triton.runtime import driver as _  # noqa: F401  (loads the module below; the package's attribute hides it)

from fla_mesa.cpu import registry

FAMILIES = (
    "delta_net, gated_deltanet, gla, hgrn, kda, linear_attn, mamba2, mesa_net, retnet, transformer (softmax attention)"
)


@registry.also_install
def name_missing_entry_points() -> None:
    """Makes Triton's error about a missing driver name fla's function and what is covered.

    Triton asks `_create_driver` for a driver at the first kernel launch, and it raises where there is none. Only that
    error, and only when fla stands behind it, becomes one that names fla's function and what is covered.
    """
    module: Any = sys.modules["triton.runtime.driver"]
    create_driver = module._create_driver

    def create_driver_or_explain() -> Any:
        try:
            return create_driver()
        except RuntimeError as error:
            entry_point = _fla_entry_point(sys._getframe(1))
            if entry_point is None:
                raise
            raise NotImplementedError(_message(entry_point)) from error

    registry.put(module, "_create_driver", create_driver_or_explain)


def _fla_entry_point(frame: FrameType | None) -> str | None:
    """The outermost function of fla's ops or modules on the stack of `frame`."""
    found = None
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(("fla.ops.", "fla.modules.")):
            code = frame.f_code
            found = f"{module}.{getattr(code, 'co_qualname', code.co_name)}"
        frame = frame.f_back
    return found


def _message(entry_point: str) -> str:
    covered = [name.split(".") for name in registry.covered()]
    functions = sorted({name[-1] for name in covered if name[:2] == ["fla", "ops"]})
    modules = sorted({name[2] for name in covered if name[:2] == ["fla", "modules"]})
    return (
        f"{entry_point} launches a Triton kernel, which needs a GPU, and fla_mesa.cpu has no PyTorch version "
        f"of it. Covered model families: {FAMILIES}. Covered in fla.ops: {', '.join(functions)}. "
        f"Covered in fla.modules: {', '.join(modules)}."
    )
