"""The back end "diagonal": returns the solver's starting point ``x = q / diag(H + diag(lamb))`` without a step. For inference."""

from __future__ import annotations

from fla_mesa.ops import pytorch
from fla_mesa.ops.checks import check_gradients
from fla_mesa.ops.pytorch import TOLERANCE, l2_normalize
from fla_mesa.ops.types import ChunkForward, ChunkGradients, DecodingStep, QueryForward, QueryGradients

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


def why_not(function: str, tensors, *, max_steps: int, tolerance: float | None) -> None:
    """Always None: it supports everything."""


def chunk_forward(*tensors, **options) -> ChunkForward:
    """See :class:`~fla_mesa.ops.backends.Backend`."""
    return pytorch.chunk_forward(*tensors, **options | {"max_steps": 0})


def chunk_backward(*tensors, **options) -> ChunkGradients:
    """Always fails: the starting point is not the solution, whose gradients the op knows."""
    check_gradients(0)
    raise AssertionError


def decoding_step(*tensors, **options) -> DecodingStep:
    """See :class:`~fla_mesa.ops.backends.Backend`."""
    return pytorch.decoding_step(*tensors, **options | {"max_steps": 0})


def query_forward(*tensors, **options) -> QueryForward:
    """See :class:`~fla_mesa.ops.backends.Backend`."""
    return pytorch.query_forward(*tensors, **options | {"max_steps": 0})


def query_backward(*tensors, **options) -> QueryGradients:
    """Always fails, like ``chunk_backward``."""
    check_gradients(0)
    raise AssertionError
