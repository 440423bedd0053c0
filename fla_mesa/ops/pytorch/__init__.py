"""The back end in plain PyTorch, for any device."""

from fla_mesa.ops.pytorch.backward import chunk_backward
from fla_mesa.ops.pytorch.forward import chunk_forward
from fla_mesa.ops.pytorch.normalize import l2_normalize
from fla_mesa.ops.pytorch.query import query_backward, query_forward
from fla_mesa.ops.pytorch.step import decoding_step

__all__ = [
    "TOLERANCE",
    "chunk_backward",
    "chunk_forward",
    "decoding_step",
    "l2_normalize",
    "query_backward",
    "query_forward",
    "why_not",
]

TOLERANCE = 1e-4


def why_not(function: str, tensors, *, max_steps: int, tolerance: float | None) -> None:
    """Always None: it supports everything."""
