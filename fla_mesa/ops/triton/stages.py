"""The stages of a solve: each handles the tiles that the previous one could not finish."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from fla.utils import get_multiprocessor_count

from fla_mesa.ops.triton.plan import CHUNK, Plan, size_class


class Stage(NamedTuple):
    """How to launch one stage of the solve."""

    plan: Plan
    tiles: int  # of its own size
    todo: torch.Tensor | None  # tiles that the stage before left to it, int32, their number first; None: all
    left: torch.Tensor  # the same for the stage after it
    NEXT: int  # rows of a tile of that stage; 0 in the last

    def grid(self, meta: dict) -> tuple[int]:
        if self.todo is None:
            return (self.tiles // meta["MERGE"],)
        return (min(self.tiles, programs_at_once(self.todo.device)),)

    @property
    def arguments(self) -> dict[str, Any]:
        """The kernels' arguments of these names."""
        lists = {"todo": self.todo, "left": self.left, "NEXT": self.NEXT, "AGAIN": self.todo is not None}
        return self.plan._asdict() | lists | {"size": size_class(self.tiles)}


def lay_out(plans: tuple[Plan, ...], chunks: int, like: torch.Tensor) -> list[Stage]:
    """The stages of a solve over this many chunks (of all heads), on the device of ``like [...]``."""
    stages, todo = [], None
    for plan, NEXT in zip(plans, (*(after.BR for after in plans[1:]), 0), strict=True):
        left = torch.zeros(1 + (chunks * (CHUNK // NEXT) if NEXT else 0), dtype=torch.int32, device=like.device)
        stages.append(Stage(plan, chunks * (CHUNK // plan.BR), todo, left, NEXT))
        todo = left
    return stages


def programs_at_once(device: torch.device) -> int:
    """Number of multiprocessors: a kernel of the last stage fills one."""
    return get_multiprocessor_count(device.index or 0) if device.type == "cuda" else 2
