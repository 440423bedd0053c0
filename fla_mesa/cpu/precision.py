"""Inside the stand-ins, as inside fla's kernels, arithmetic is float32 whatever the inputs are; float64 stays float64."""

from __future__ import annotations

from typing import overload

import torch


@overload
def up(x: torch.Tensor) -> torch.Tensor: ...
@overload
def up(x: None) -> None: ...
def up(x: torch.Tensor | None) -> torch.Tensor | None:
    """`x` in the precision to compute in."""
    return x if x is None or x.dtype in (torch.float32, torch.float64) else x.float()
