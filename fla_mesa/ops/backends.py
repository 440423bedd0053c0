"""Which implementation of the op runs. A back end is a module with ``chunk_forward``, ``chunk_backward`` and ``decoding_step``."""

from __future__ import annotations

from types import ModuleType

import torch

from fla_mesa.ops import pytorch

BACKENDS = {"pytorch": pytorch}


def choose_backend(name: str | None, device: torch.device) -> ModuleType:
    """The back end of this name, or the best one for the device if the name is None."""
    if name is None:
        name = "pytorch"
    if name not in BACKENDS:
        raise ValueError(f"backend must be None or one of {sorted(BACKENDS)}; got {name!r}")
    return BACKENDS[name]
