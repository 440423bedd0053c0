"""Argument checks of the op, the same for every back end and entry point. They run before any other work.

Shapes, types and options are always checked. Values (``lamb > 0``, ``g <= 0``, beta in [0, 1], a symmetric H, the boundaries of packed
sequences) are checked on CPU tensors only: reading them from a GPU would stall it.
"""

from __future__ import annotations

import math
from typing import Any

import torch

ASYMMETRY = 1e-3  # of its largest entry that a state may be off, by rounding
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _describe(x: object) -> str:
    if isinstance(x, torch.Tensor):
        return f"a {x.dtype} tensor of shape {list(x.shape)} on {x.device}"
    return f"{x!r} of type {type(x).__name__}"


def _check_tensor(name: str, x: object, shape: tuple[int | None, ...], layout: str, like: torch.Tensor) -> None:
    """Requires x to be a floating-point tensor of this shape (None: any size) on the device of ``like``."""
    if not isinstance(x, torch.Tensor) or x.dtype not in FLOATS:
        raise TypeError(f"{name} must be a tensor of float64, float32, bfloat16 or float16; got {_describe(x)}")
    if x.ndim != len(shape) or any(want is not None and want != got for want, got in zip(shape, x.shape, strict=True)):
        sizes = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} must have shape {layout} = [{sizes}]; got {_describe(x)}")
    if x.device != like.device:
        raise ValueError(f"{name} must be on the device of q, {like.device}; got {_describe(x)}")


def check_gradients(max_steps: int) -> None:
    """Refuses gradients of a read without solver steps.

    Raises:
        ValueError: They are asked for.
    """
    if max_steps == 0:
        raise ValueError(
            "max_CG_iteration=0 and backend='diagonal' have no gradients: without a step, x is not the solution that the op differentiates"
        )


def _check_options(max_CG_iteration: object, cg_tolerance: Any) -> None:
    if isinstance(max_CG_iteration, bool) or not isinstance(max_CG_iteration, int) or max_CG_iteration < 0:
        raise ValueError(f"max_CG_iteration must be an integer >= 0; got {max_CG_iteration!r}")
    number = isinstance(cg_tolerance, (int, float)) and not isinstance(cg_tolerance, bool)
    if cg_tolerance is not None and not (number and 0 < cg_tolerance < math.inf):
        raise ValueError(f"cg_tolerance must be None or a finite number > 0; got {cg_tolerance!r}")


def _check_query(q: object, leading: str) -> None:
    if not isinstance(q, torch.Tensor) or q.dtype not in FLOATS:
        raise TypeError(f"q must be a tensor of float64, float32, bfloat16 or float16; got {_describe(q)}")
    if q.ndim != leading.count(",") + 2 or q.numel() == 0:
        raise ValueError(f"q must have shape [{leading}, K], no size of 0; got {_describe(q)}")


def _check_inputs(q: object, k: object, v: object, g: object, beta: object, lamb: object, leading: str) -> None:
    """Checks sizes against those of q. ``leading`` names q's dimensions before the last, such as "B, T, H"."""
    _check_query(q, leading)
    assert isinstance(q, torch.Tensor)
    sizes = tuple(q.shape[:-1])
    _check_tensor("k", k, tuple(q.shape), f"[{leading}, K]", q)
    _check_tensor("v", v, (*sizes, None), f"[{leading}, V]", q)
    _check_tensor("g", g, sizes, f"[{leading}]", q)
    _check_tensor("beta", beta, sizes, f"[{leading}]", q)
    _check_tensor("lamb", lamb, tuple(q.shape[-2:]), "[H, K]", q)
    assert isinstance(k, torch.Tensor) and isinstance(v, torch.Tensor) and isinstance(lamb, torch.Tensor)
    if v.shape[-1] == 0:
        raise ValueError(f"v must have a value size V >= 1; got {_describe(v)}")
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise TypeError(f"{name} must have the dtype of q, {q.dtype}; got {_describe(x)}")
    _check_lamb(lamb)
    assert isinstance(g, torch.Tensor) and isinstance(beta, torch.Tensor)
    # Comparisons are false for NaN, which comes out as NaN where it belongs.
    if g.device.type == "cpu" and bool((g > 0).any()):
        raise ValueError(f"g must be <= 0 everywhere, the logarithm of a gate; its largest value is {_largest(g):g}")
    if beta.device.type == "cpu" and bool(((beta < 0) | (beta > 1)).any()):
        raise ValueError(
            f"beta must be in [0, 1] everywhere; its values lie between {-_largest(-beta):g} and {_largest(beta):g}"
        )


def _largest(x: torch.Tensor) -> float:
    return x.detach().nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf).max().item()


def _check_lamb(lamb: torch.Tensor) -> None:
    if lamb.device.type == "cpu" and bool((lamb <= 0).any()):
        raise ValueError(f"lamb must be > 0 everywhere; its smallest value is {lamb.min().item():g}")


def _check_states(
    names: tuple[str, str], h_kk: object, h_kv: object, N: int, q: torch.Tensor, V: int | None, leading: str = "N"
) -> None:
    H, K = q.shape[-2:]
    _check_tensor(names[0], h_kk, (N, H, K, K), f"[{leading}, H, K, K]", q)
    _check_tensor(names[1], h_kv, (N, H, K, V), f"[{leading}, H, K, V]", q)
    for name, h in zip(names, (h_kk, h_kv), strict=True):
        assert isinstance(h, torch.Tensor)
        if h.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{name} must be float32 or float64, because 16 bits are too few for a state; got {_describe(h)}"
            )
    assert isinstance(h_kk, torch.Tensor)
    if h_kk.device.type == "cpu":
        h_kk = h_kk.detach()
        off = (h_kk - h_kk.mT).abs_().amax((-2, -1))
        size = h_kk.abs().amax((-2, -1))
        if bool((off > ASYMMETRY * size).any()):
            raise ValueError(
                f"{names[0]} must be symmetric; entries differ from their transposes by up to {_largest(off / size):.2g} of the largest"
            )


def _check_boundaries(name: str, cu_seqlens: object, B: int, T: int) -> None:
    """Checks the boundaries of packed sequences: [0, ..., T], strictly increasing."""
    if not isinstance(cu_seqlens, torch.Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be an int32 or int64 tensor; got {_describe(cu_seqlens)}")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
        raise ValueError(f"{name} must have shape [N + 1] with N >= 1; got {_describe(cu_seqlens)}")
    if B != 1:
        raise ValueError(f"{name} describes sequences packed into one row, so q must have B = 1; got B = {B}")
    if cu_seqlens.device.type == "cpu":
        if cu_seqlens[0] != 0 or cu_seqlens[-1] != T:
            raise ValueError(f"{name} must start at 0 and end at T = {T}; got {cu_seqlens[0]} and {cu_seqlens[-1]}")
        if bool((cu_seqlens.diff() <= 0).any()):
            n = int((cu_seqlens.diff() <= 0).nonzero()[0])
            raise ValueError(f"{name} must increase; got {cu_seqlens[n]} and then {cu_seqlens[n + 1]} at index {n}")


def check_chunk(
    q: object,
    k: object,
    v: object,
    g: object,
    beta: object,
    lamb: object,
    h_kk_init: object,
    h_kv_init: object,
    max_CG_iteration: object,
    cg_tolerance: object,
    cu_seqlens: object,
    cu_seqlens_cpu: object,
) -> None:
    """Checks the arguments of ``chunk_mesa_net``: q, k ``[B, T, H, K]``, v ``[B, T, H, V]``, gates ``[B, T, H]``, states.

    Raises:
        ValueError: A shape or value is wrong; the message names the argument.
        TypeError: A dtype or type is wrong.
    """
    _check_options(max_CG_iteration, cg_tolerance)
    _check_inputs(q, k, v, g, beta, lamb, "B, T, H")
    assert isinstance(q, torch.Tensor) and isinstance(v, torch.Tensor)
    B, T = q.shape[:2]
    N = B
    if cu_seqlens is not None:
        _check_boundaries("cu_seqlens", cu_seqlens, B, T)
        assert isinstance(cu_seqlens, torch.Tensor)
        N = len(cu_seqlens) - 1
    if cu_seqlens_cpu is not None:
        if cu_seqlens is None:
            raise ValueError("cu_seqlens_cpu is a copy of cu_seqlens and must come with it; got cu_seqlens=None")
        _check_boundaries("cu_seqlens_cpu", cu_seqlens_cpu, B, T)
        assert isinstance(cu_seqlens_cpu, torch.Tensor)
        if cu_seqlens_cpu.device.type != "cpu" or len(cu_seqlens_cpu) != N + 1:
            raise ValueError(
                f"cu_seqlens_cpu must be a copy of cu_seqlens, {N + 1} entries, on the CPU; got {_describe(cu_seqlens_cpu)}"
            )
    if (h_kk_init is None) != (h_kv_init is None):
        given, missing = ("h_kv_init", "h_kk_init") if h_kk_init is None else ("h_kk_init", "h_kv_init")
        raise ValueError(f"h_kk_init and h_kv_init must be given together; got {given} without {missing}")
    if h_kk_init is not None:
        _check_states(("h_kk_init", "h_kv_init"), h_kk_init, h_kv_init, N, q, v.shape[-1])


def check_query(
    q: object, h_kk: object, h_kv: object, lamb: object, max_CG_iteration: object, cg_tolerance: object
) -> None:
    """The same for ``mesa_net_query``: q ``[B, T, H, K]`` and two states."""
    _check_options(max_CG_iteration, cg_tolerance)
    _check_query(q, "B, T, H")
    assert isinstance(q, torch.Tensor)
    _check_tensor("lamb", lamb, tuple(q.shape[-2:]), "[H, K]", q)
    assert isinstance(lamb, torch.Tensor)
    _check_lamb(lamb)
    V = h_kv.shape[-1] if isinstance(h_kv, torch.Tensor) and h_kv.ndim == 4 else None
    _check_states(("h_kk", "h_kv"), h_kk, h_kv, len(q), q, V, leading="B")


def check_step(
    q: object,
    k: object,
    v: object,
    g: object,
    beta: object,
    lamb: object,
    prev_h_kk: object,
    prev_h_kv: object,
    max_CG_iteration: object,
    cg_tolerance: object,
) -> None:
    """The same for ``mesa_net_decoding_one_step``: q ``[B, H, K]`` and two states."""
    _check_options(max_CG_iteration, cg_tolerance)
    _check_inputs(q, k, v, g, beta, lamb, "B, H")
    assert isinstance(q, torch.Tensor) and isinstance(v, torch.Tensor)
    _check_states(("prev_h_kk", "prev_h_kv"), prev_h_kk, prev_h_kv, q.shape[0], q, v.shape[-1])


def check_sequences(q: object, k: object, v: object, gates: dict[str, Any], cu_seqlens: object) -> int:
    """The same for ops of other rules: ``q, k [B, T, H, K]``, ``v [B, T, H, V]``, gates ``[B, T, H]``. Returns the number of sequences.

    Raises:
        ValueError: A shape or value is wrong; the message names the argument.
        TypeError: A dtype or type is wrong.
    """
    if not isinstance(q, torch.Tensor) or q.dtype not in FLOATS:
        raise TypeError(f"q must be a tensor of float64, float32, bfloat16 or float16; got {_describe(q)}")
    if q.ndim != 4 or q.numel() == 0:
        raise ValueError(f"q must have shape [B, T, H, K], no size of 0; got {_describe(q)}")
    _check_tensor("k", k, tuple(q.shape), "[B, T, H, K]", q)
    _check_tensor("v", v, (*q.shape[:3], None), "[B, T, H, V]", q)
    for name, gate in gates.items():
        _check_tensor(name, gate, tuple(q.shape[:3]), "[B, T, H]", q)
    if cu_seqlens is None:
        return q.shape[0]
    _check_boundaries("cu_seqlens", cu_seqlens, q.shape[0], q.shape[1])
    assert isinstance(cu_seqlens, torch.Tensor)
    return len(cu_seqlens) - 1


def check_state(name: str, state: object, shape: tuple[int, ...], q: torch.Tensor) -> None:
    """Requires a state of this shape, of 32 bits or more, on the device of q ``[B, T, H, K]``.

    Raises:
        ValueError: Its shape or device is wrong.
        TypeError: Its dtype is wrong.
    """
    _check_tensor(name, state, shape, "[" + ", ".join("NHKV"[: len(shape)]) + "]", q)
    assert isinstance(state, torch.Tensor)
    if state.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{name} must be float32 or float64, because 16 bits are too few for a state; got {_describe(state)}"
        )
