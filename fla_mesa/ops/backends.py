"""Chooses which implementation of the op runs.

A back end is a module that does what :class:`Backend` says, and says itself what it does not take; it is imported when it is first
asked. One more is one more line of ``BACKENDS``, or :func:`register_backend` in a plug-in.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import warnings
from collections.abc import Mapping
from typing import Protocol, cast

import torch

from fla_mesa.ops import gpu
from fla_mesa.ops.types import ChunkForward, ChunkGradients, DecodingStep, QueryForward, QueryGradients

BACKENDS = {
    "pytorch": "fla_mesa.ops.pytorch",
    "fla": "fla_mesa.ops.fla",
    "triton": "fla_mesa.ops.triton",
    "exact": "fla_mesa.ops.exact",
    "diagonal": "fla_mesa.ops.diagonal",
}
# What is tried in turn where the caller names none, by type of device. "triton" waits for a GPU to show that it is right and faster.
AUTOMATIC = {"cuda": ("fla", "pytorch")}
ANYWHERE = ("pytorch",)

Tensors = Mapping[str, torch.Tensor | None]


class Backend(Protocol):
    """The functions that a back end provides. Tensors are already checked and have the shapes given in the public functions."""

    TOLERANCE: float | None
    """The relative residual at which it stops where the caller names none; None if it always takes all of its steps.

    A back end may have a ``TOLERANCE_16`` as well: the same over sequences of 16-bit inputs.
    """

    def why_not(self, function: str, tensors: Tensors, *, max_steps: int, tolerance: float | None) -> str | None:
        """Why the back end cannot run this function ("chunk", "step" or "query") on these arguments ``[B, T, H, ...]``; None if it can.

        `tolerance` is None where the caller names none.
        """
        ...

    def chunk_forward(
        self, q, k, v, g, beta, lamb, h_kk_init, h_kv_init, *, cu_seqlens, cu_seqlens_cpu, max_steps, tolerance
    ) -> ChunkForward:
        """The op over sequences ``[B, T, H, ...]``; q and k are already normalized."""
        ...

    def chunk_backward(
        self,
        k,
        v,
        g,
        beta,
        lamb,
        h_kk_init,
        h_kv_init,
        x,
        do,
        dh_kk,
        dh_kv,
        *,
        cu_seqlens,
        cu_seqlens_cpu,
        max_steps,
        tolerance,
    ) -> ChunkGradients:
        """Its gradients, from its solution x and the gradients of its outputs, ``[B, T, H, ...]``."""
        ...

    def decoding_step(self, q, k, v, g, beta, lamb, h_kk, h_kv, *, max_steps, tolerance) -> DecodingStep:
        """One position, ``[B, H, ...]``."""
        ...

    def query_forward(self, q, h_kk, h_kv, lamb, *, max_steps, tolerance) -> QueryForward:
        """Many queries ``[B, T, H, K]`` on one state."""
        ...

    def query_backward(self, h_kk, h_kv, lamb, x, do, *, max_steps, tolerance) -> QueryGradients:
        """Its gradients ``[B, T, H, ...]``."""
        ...

    def l2_normalize(self, x: torch.Tensor) -> torch.Tensor:
        """``x / sqrt(sum x^2 + 1e-6)`` over the last dimension of ``x [..., K]``, differentiable."""
        ...


def register_backend(name: str, module: str) -> None:
    """Registers a module that implements :class:`Backend` as ``backend=name``; from inside it, ``register_backend("mine", __name__)``.

    Raises:
        ValueError: The name is taken by another module.
    """
    if BACKENDS.setdefault(name, module) != module:
        raise ValueError(f"name: {name!r} is already a back end, {BACKENDS[name]}; got {module}")


def check_backend(name: object) -> None:
    """Requires the name of a back end, or None.

    Raises:
        ValueError: It is neither.
    """
    if name is None or name in BACKENDS:
        return
    near = difflib.get_close_matches(str(name), BACKENDS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"backend must be None or one of {sorted(BACKENDS)}; got {name!r}{hint}")


def choose_backend(
    name: str | None, function: str, tensors: Tensors, *, max_steps: int = 30, tolerance: float | None = None
) -> Backend:
    """The named back end or, if the name is None, the first of the device's back ends that supports these arguments.

    Where that is not the device's first, a warning says why, once for each reason.

    Args:
        name: One of ``BACKENDS``, or None.
        function: "chunk", "step" or "query".
        tensors: The arguments by name, ``[B, T, H, ...]``; q sets the device.
        max_steps, tolerance: The caller's; None for the back end's own tolerance.

    Raises:
        ValueError: There is none of this name, or it does not take these arguments; the message says what, and which one does.
    """
    check_backend(name)
    q = tensors["q"]
    assert q is not None
    candidates = AUTOMATIC.get(q.device.type, ANYWHERE) if name is None else (name,)
    reasons = {}
    for candidate in candidates:
        backend, reason = _load(candidate)
        if backend is not None:
            reason = backend.why_not(function, tensors, max_steps=max_steps, tolerance=tolerance)
        if backend is not None and reason is None:
            if reasons and function != "query":  # no back end of GPUs has that
                _warn_of(candidate, *reasons.items())
            return backend
        reasons[candidate] = reason
    refused = "; ".join(f"backend={candidate!r} {reason}" for candidate, reason in reasons.items())
    raise ValueError(f"{refused}. Use backend='pytorch', which takes any device, dtype and size")


def default_tolerance(backend: Backend, dtype: torch.dtype) -> float | None:
    """The relative residual at which this back end stops on sequences of inputs of this type, None for never."""
    return getattr(backend, "TOLERANCE_16", backend.TOLERANCE) if dtype.itemsize == 2 else backend.TOLERANCE


@functools.cache
def _warn_of(chosen: str, *reasons: tuple[str, str | None]) -> None:
    """Warns once for each set of reasons."""
    refused = "; ".join(f"backend={name!r} {reason}" for name, reason in reasons)
    warnings.warn(f"the Mesa op runs on backend={chosen!r}: {refused}", stacklevel=4)


def _load(name: str) -> tuple[Backend | None, str | None]:
    """The module of a back end, or the reason it is unavailable."""
    try:
        return cast(Backend, importlib.import_module(BACKENDS[name])), None
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("fla_mesa"):
            raise
        return None, f"needs the package {error.name}, which is not installed"


def l2_normalize(x: torch.Tensor) -> torch.Tensor:
    """``x / sqrt(sum x^2 + 1e-6)`` over the last dimension of ``x [..., K]``, computed in float32 or better; fla's definition."""
    kernels = x.device.type == "cuda" and x.dtype != torch.float64 and gpu.why_no_kernels(x.device) is None
    backend, _ = _load("fla" if kernels else "pytorch")
    assert backend is not None
    return backend.l2_normalize(x)
