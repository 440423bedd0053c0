"""The devices of this machine by name."""

from __future__ import annotations

import torch

from fla_mesa.errors import UserError


def check_device(name: str) -> torch.device:
    """The device of a name such as 'cpu', 'cuda' or 'cuda:1'.

    Raises:
        UserError: It is no name of a device, or this machine has no such device.
    """
    there = ["cpu"]
    if torch.accelerator.is_available():
        kind = str(torch.accelerator.current_accelerator()).partition(":")[0]
        there += [kind, *(f"{kind}:{number}" for number in range(torch.accelerator.device_count()))]
    if name not in there:
        raise UserError(f"device: this machine has {', '.join(there)}; got {name!r}")
    return torch.device(name)
