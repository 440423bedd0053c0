"""Extends Triton's interpreter so that it can run this package's and fla's kernels without a GPU.

With TRITON_INTERPRET=1 in the environment, `import fla_mesa` calls `install()`, and the Triton back end `mend_loops()`; kernels of fla
that are called directly want that as well, once the modules that they are in are imported. Measured with triton 3.6 to 3.9; the
interpreter of 3.6 needs numpy before 2.4, and cannot run the backward pass of fla's gla.

1. Autotuned kernels ask the active driver for a target and a benchmarker: `StubDriver` gives both; the first
   configuration wins.
2. `tl.dot` multiplies bfloat16 operands as the raw 16-bit integers they are stored in: `create_dot` decodes them.
3. `for i in range(n)` hands the kernel a Python int, and fla's kernels call `i.to(tl.int64)`: `LoopIndex` allows it.
4. `tl.dot` ignores `input_precision`. Inside `with rounded_dots():` float32 operands are rounded as tensor cores do.
5. A float32 becomes a bfloat16 by dropping bits: `cast` rounds it to the nearest, as GPUs do.
6. Most of the time goes into preparing each call of a device function anew: `patch_lang` does it once a kernel.
"""

import builtins
import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
import triton.runtime.interpreter as interpreter
from triton import knobs
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class StubDriver(DriverBase):
    """Driver of a non-existent device: autotuning finds all configurations equal and picks the first."""

    def __init__(self) -> None:
        """The parent's constructor would look for a GPU; there is nothing to set up."""

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return "int"

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cpu", 0, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_benchmarker(self) -> Any:
        return lambda fn, quantiles=None, **_: [1.0, 1.0, 1.0]

    def get_empty_cache_for_benchmark(self) -> torch.Tensor:
        return torch.empty(1)

    def clear_cache(self, cache: torch.Tensor) -> None:
        pass

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


class LoopIndex(int):
    """A loop index with `.to(dtype)`, as in compiled kernels."""

    def to(self, *_: Any, **__: Any) -> "LoopIndex":
        return self


def loop_range(*bounds: Any) -> Iterator[LoopIndex]:
    for i in builtins.range(*[int(b.handle.data.item()) if hasattr(b, "handle") else int(b) for b in bounds]):
        yield LoopIndex(i)


def mend_loops(*prefixes: str) -> None:
    """Gives each imported module under `prefixes` (default: fla's ops and modules) a `range` whose index has `.to`."""
    for name, module in list(sys.modules.items()):
        if name.startswith(prefixes or ("fla.ops", "fla.modules")) and "range" not in vars(module):
            module.range = loop_range  # type: ignore[attr-defined]


def round_mantissa(x: np.ndarray, bits: int) -> np.ndarray:
    """float32 rounded to nearest (ties to even) with `bits` explicit mantissa bits: 10 is tf32, 7 is bfloat16."""
    drop = 23 - bits
    raw = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    keep = np.uint32((0xFFFFFFFF << drop) & 0xFFFFFFFF)
    rounded = (raw + ((raw >> drop) & 1) + np.uint32((1 << (drop - 1)) - 1)) & keep
    return np.where(np.isfinite(x), rounded.view(np.float32), x)


def split_matmul(a: np.ndarray, b: np.ndarray, bits: int, parts: int) -> np.ndarray:
    """a @ b with float32 operands split into `parts` pieces of `bits` mantissa bits, without the negligible products."""

    def pieces(x: np.ndarray) -> list[np.ndarray]:
        out = []
        for _ in range(parts):
            out.append(round_mantissa(x, bits))
            x = x - out[-1]
        return out

    a_parts, b_parts = pieces(a), pieces(b)
    orders = [(i, j) for i in range(parts) for j in range(parts) if i + j < parts]
    # smallest products first, as the compiler emits them
    return sum(a_parts[i] @ b_parts[j] for i, j in sorted(orders, key=sum, reverse=True))  # type: ignore[return-value]


_rounds_operands = False


@contextlib.contextmanager
def rounded_dots() -> Iterator[None]:
    """Makes `tl.dot` of float32 operands respect `input_precision` inside the block, instead of computing in float32."""
    global _rounds_operands
    before, _rounds_operands = _rounds_operands, True
    try:
        yield
    finally:
        _rounds_operands = before


def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, *_: Any) -> Any:
    def decode(x: Any) -> np.ndarray:
        return (x.data.astype(np.uint32) << 16).view(np.float32) if x.dtype.scalar == tl.bfloat16 else x.data

    a_data, b_data = decode(a), decode(b)
    name = str(input_precision).rsplit(".", 1)[-1].upper()
    in_parts = {"TF32": (10, 1), "TF32X3": (10, 2), "BF16X3": (7, 2), "BF16X6": (7, 3)}.get(name)
    is_float32 = a.dtype.scalar == tl.float32 and b.dtype.scalar == tl.float32
    if d.dtype.scalar == tl.float16:
        # Sums of float16: each matrix instruction adds 16 products, more precisely than that, and rounds.
        total = d.data
        for i in range(0, a_data.shape[-1], 16):
            part = np.matmul(a_data[..., i : i + 16], b_data[..., i : i + 16, :], dtype=np.float32)
            total = (total.astype(np.float32) + part).astype(np.float16)
        return interpreter.TensorHandle(total, tl.float16)
    if _rounds_operands and is_float32 and in_parts is not None:
        product = split_matmul(a_data, b_data, *in_parts).astype(d.data.dtype)
    else:
        product = np.matmul(a_data, b_data, dtype=d.data.dtype)
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


_cast = interpreter.InterpreterBuilder.cast_impl


def cast(self: Any, src: Any, dst_type: Any) -> Any:
    if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
        src = interpreter.TensorHandle(round_mantissa(src.data, 7), tl.float32)
    return _cast(self, src, dst_type)


_patch_lang = interpreter._patch_lang


def patch_lang(fn: Any) -> Any:
    """Skips the search of `triton.language` in device functions, which their kernel has already done."""
    langs = [value for value in fn.__globals__.values() if value is tl or value is tl.core]
    if any(tl.core.is_builtin(lang.load) for lang in langs):
        return _patch_lang(fn)
    return interpreter._LangPatchScope()


def install() -> None:
    """Mend the interpreter, and set the stub driver if there is no GPU. Calling it again does nothing.

    Raises:
        RuntimeError: TRITON_INTERPRET=1 is not set.
    """
    if not knobs.runtime.interpret:
        raise RuntimeError("set TRITON_INTERPRET=1 before triton is imported")
    if interpreter._patch_lang is patch_lang:
        return
    if not any(backend.driver.is_active() for backend in backends.values()):
        triton.runtime.driver.set_active(StubDriver())
    interpreter._patch_lang = patch_lang
    interpreter.InterpreterBuilder.create_dot = create_dot  # type: ignore[method-assign]
    interpreter.InterpreterBuilder.cast_impl = cast  # type: ignore[method-assign]
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = dataclasses.replace(
        options, allowed_dot_input_precisions=("tf32", "tf32x3", "ieee", "bf16x3", "bf16x6")
    )
