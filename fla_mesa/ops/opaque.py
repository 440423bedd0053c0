"""Hides the op from ``torch.compile``."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def opaque(function: Function) -> Function:
    """Decorator that keeps a function and all it calls out of compiled graphs, as fla does with its own.

    Checks of values, the choice of a back end by device and launches of Triton would break the graph twenty times a call; so it is once.
    (The annotation of ``torch.compiler.disable`` forgets the signature.)
    """
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]
