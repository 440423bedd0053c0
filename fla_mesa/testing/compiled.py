"""Compiles every kernel for GPUs that need not be present: registers, spills, shared memory, occupancy.

Triton compiles each kernel for the target and the ptxas that comes with it reports what it used. Needs triton and flash-linear-attention,
no GPU and no driver, and no TRITON_INTERPRET.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fla_mesa.ops.gpu import Gpu
from fla_mesa.ops.triton import (
    TOLERANCE,
    TOLERANCE_16,
    kernels_linear,
    kernels_solve,
    kernels_step,
)
from fla_mesa.ops.triton.launch import output_block, state_blocks
from fla_mesa.ops.triton.plan import (
    CHUNK,
    forward_positions_block,
    gradient_blocks,
    make_plan,
    positions_block,
    power_of_two,
)

HEADS = 16  # of the model whose kernels are compiled; it only enters strides
TYPES = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}


@dataclass(frozen=True)
class Target:
    """Limits of a streaming multiprocessor (CUDA C++ programming guide, table of technical specifications)."""

    shared_per_block: int
    shared_per_sm: int
    warps_per_sm: int
    blocks_per_sm: int
    registers_per_sm: int = 65536

    def occupancy(self, registers: int, shared: int, warps: int) -> float:
        """Share of the warps of a multiprocessor that can be resident."""
        registers_per_warp = -(-registers // 8) * 8 * 32
        blocks = min(
            self.blocks_per_sm,
            self.warps_per_sm // warps,
            self.registers_per_sm // (registers_per_warp * warps),
            self.shared_per_sm // (shared + 1024),  # the driver keeps 1 KiB of each block
        )
        return blocks * warps / self.warps_per_sm


TARGETS = {
    80: Target(163 * 1024, 164 * 1024, 64, 32),
    86: Target(99 * 1024, 100 * 1024, 48, 16),
    89: Target(99 * 1024, 100 * 1024, 48, 24),
    90: Target(227 * 1024, 228 * 1024, 64, 32),
    100: Target(227 * 1024, 228 * 1024, 64, 32),
    120: Target(99 * 1024, 100 * 1024, 48, 24),
}


def kind_of(arch: int) -> Gpu:
    """sm_90 as the kernels' launchers know it."""
    return Gpu("nvidia", (arch // 10, arch % 10))


@dataclass(frozen=True)
class Job:
    """One kernel to compile: pointers and scalars by name with their Triton types, and compile-time constants."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]


@dataclass(frozen=True)
class Usage:
    """Resources of a compiled kernel. Spills are bytes per thread."""

    registers: int
    spill_stores: int
    spill_loads: int
    shared: int
    wgmma: int
    mma: int
    occupancy: float


def autotuner_of(kernel: Any) -> Any | None:
    """The autotuner under a kernel's decorators."""
    while not hasattr(kernel, "configs"):
        if isinstance(kernel, triton.runtime.jit.JITFunction):
            return None
        kernel = kernel.fn
    return kernel


def configurations(job: Job, arch: int) -> list[triton.Config]:
    """Autotuning's choices for this job on this GPU, the default first.

    fla's lists begin with the fewest warps, whatever the head size; of those, one with four warps stands for the list.
    """
    tuner = autotuner_of(job.kernel)
    if tuner is None:
        return [triton.Config({}, num_warps=job.constants.get("num_warps", 4), num_stages=1)]
    prune = tuner.early_config_prune
    pointer = SimpleNamespace(device=kind_of(arch))
    configs = list(prune(tuner.configs, job.constants | {"k": pointer}) if prune else tuner.configs)
    return sorted(configs, key=lambda c: c.num_warps != 4) if job.name.startswith("fla:") else configs


def describe(config: triton.Config) -> str:
    """Warps, stages and the other choices of a configuration."""
    rows = f", {config.kwargs['BR']} rows" if "BR" in config.kwargs else ""
    return f"{config.num_warps}, {config.num_stages}{rows}"


def function_of(job: Job) -> Any:
    """The function under a kernel's decorators."""
    jit = job.kernel
    while not isinstance(jit, triton.runtime.jit.JITFunction):
        jit = jit.fn
    return jit


def parameters(job: Job) -> list[str]:
    """The names of what a kernel takes."""
    return function_of(job).arg_names


def compile_for(job: Job, arch: int, config: triton.Config) -> tuple[Any, Usage]:
    """Compiles one kernel in one configuration for one target; returns Triton's result and ptxas's output.

    Raises:
        PTXASError: ptxas refuses the kernel, for example because of shared memory.
        RuntimeError: ptxas did not report registers.
    """
    jit = function_of(job)
    constants = {n: c for n, c in job.constants.items() if n in jit.arg_names} | config.kwargs
    signature = {n: "constexpr" if n in constants else job.types[n] for n in jit.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(jit.arg_names) if signature[n].startswith("*")}
    source = ASTSource(
        fn=jit,
        signature=signature,
        constexprs={(jit.arg_names.index(n),): value for n, value in constants.items()},
        attrs=aligned,
    )
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    # Triton calls ptxas itself, with its own choice of version and flags; what that call printed is what counts.
    with (
        knobs.compilation.scope(),
        knobs.nvidia.scope(),
        contextlib.redirect_stdout(io.StringIO()) as log,
    ):
        knobs.compilation.always_compile = True
        knobs.nvidia.dump_ptxas_log = True
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    log, ptx = log.getvalue(), compiled.asm["ptx"]
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = re.search(r"Used (\d+) registers", log)
    if spills is None or registers is None:
        raise RuntimeError(f"ptxas said nothing of registers for {job.name}:\n{log}")
    shared = compiled.metadata.shared
    return compiled, Usage(
        int(registers[1]), int(spills[1]), int(spills[2]), shared, ptx.count("wgmma.mma_async"), ptx.count("mma.sync"),
        TARGETS[arch].occupancy(int(registers[1]), shared, config.num_warps),
    )  # fmt: skip


def our_jobs(size: int, dtype: str, arch: int) -> Iterator[Job]:
    """This package's kernels for K = V = size, as their launchers call them."""
    tolerance = TOLERANCE if dtype == "float32" else TOLERANCE_16
    plan = make_plan(size, getattr(torch, dtype), tolerance, kind=kind_of(arch))
    given, f32, i32 = TYPES[dtype], "*fp32", "*i32"
    inputs = {"q": given, "k": given, "v": given, "o": given, "do": given, "dk": given, "dv": given, "dq": given}
    floats = ["g", "beta", "lamb", "h_kk", "h_kv", "h_kk_init", "h_kv_init", "h_kk_final", "h_kv_final", "h_kk_new"]
    floats += ["h_kv_new", "x", "y", "dx", "da", "da_rows", "dbeta", "dlamb", "dh_kk", "dh_kv", "inner"]
    floats += ["dh_kk_final", "dh_kv_final", "dh_kk_init", "dh_kv_init", "residual", "scratch", "r"]
    types = inputs | dict.fromkeys(floats, f32) | {"iterations": i32}
    types |= {"T": "i32", "n_chunks": "i32", "size": "i32", "max_steps": "i32", "tolerance": "fp32"}
    sizes = {"H": HEADS, "K": size, "V": size, "cu_seqlens": None, "chunk_indices": None, "chunk_offsets": None}
    sizes |= {"IS_VARLEN": False}
    states = (
        sizes
        | state_blocks(size, size)
        | {
            "BT": CHUNK,
            "BP": forward_positions_block(kind_of(arch), getattr(torch, dtype)),
            "PRECISION": plan.FINE,
            "HAS_INIT": True,
        }
    )
    yield Job("chunk states", kernels_linear.states_kernel, types, states)
    solve = sizes | plan._asdict()
    forward = solve | {"BV": output_block(size)} | ({"r": None} if plan.RESIDENT else {})
    yield Job("solve + output", kernels_solve.solve_output_kernel, types, forward)
    backward = solve | {"BE": min(plan.BK, 64)}
    yield Job("solve, backward", kernels_solve.solve_backward_kernel, types, backward)
    yield Job(
        "chunk states, backward", kernels_linear.states_backward_kernel, types,
        states | {"BP": positions_block(kind_of(arch)), "HAS_DH_KK": True, "HAS_DH_KV": True},
    )  # fmt: skip
    yield Job(
        "keys and values, backward", kernels_linear.keys_values_backward_kernel, types,
        sizes
        | {"BT": CHUNK}
        | gradient_blocks(size, size, getattr(torch, dtype), plan.FINE)
        | ({"dq": None} if dtype == "float32" else {}),
    )  # fmt: skip
    resident = power_of_two(size) <= 128
    step = sizes | {"BK": power_of_two(size), "BV": min(power_of_two(size), 64), "BD": 32, "RESIDENT": resident}
    yield Job("decoding step", kernels_step.step_kernel, types, step | ({"scratch": None} if resident else {}))


def fla_jobs(size: int, dtype: str) -> Iterator[Job]:
    """fla's kernels for the same op, as its launchers call them: q, k and q* in float16, K = V <= 128."""
    from fla.ops.mesa_net import (
        chunk_cg_solver_bwd,
        chunk_cg_solver_fwd,
        chunk_h_fwd,
        chunk_h_kk_intra_bwd,
        chunk_h_kv_intra_bwd,
        decoding_one_step,
    )

    half, given, f32 = "*fp16", TYPES["bfloat16" if dtype == "float32" else dtype], "*fp32"
    types = dict.fromkeys(["q", "k", "q_final", "q_star", "dq_final", "dk", "dk_beta"], half)
    types |= dict.fromkeys(["v", "o", "do", "dv"], given) | {"h_kv": "*bf16", "dh_kv": half, "dh": half}
    types |= dict.fromkeys(["g", "beta", "lamb", "h", "dg", "dbeta", "dlamb", "dq", "h_init", "h_kv_init"], f32)
    types |= dict.fromkeys(["h_final", "h_kv_final", "prev_h_kk", "prev_h_kv", "curr_h_kk", "curr_h_kv"], f32)
    types |= {"T": "i32", "B": "i32"}
    common = {"H": HEADS, "K": size, "V": size, "BT": CHUNK, "BK": size, "BV": size, "B": 4, "max_CG_iteration": 30}
    common |= {"IS_VARLEN": False, "cu_seqlens": None, "chunk_indices": None, "split_offsets": None}
    states = common | {"BS": CHUNK, "BK": 64, "BV": 64, "USE_INITIAL_STATE": True, "STORE_FINAL_STATE": True}
    yield Job("fla: chunk states", chunk_h_fwd.chunk_mesa_net_fwd_kernel_h, types, states)
    yield Job("fla: CG + output", chunk_cg_solver_fwd.chunk_fwd_mesa_cg_dim64_kernel, types, common)
    yield Job("fla: CG, backward", chunk_cg_solver_bwd.chunk_fwd_mesa_cg_dim64_kernel, types, common)
    yield Job("fla: G part, backward", chunk_h_kv_intra_bwd.chunk_mesa_net_h_kv_bwd_intra_kernel, types, common)
    half_dq = types | {"dq": half}
    yield Job("fla: H part, backward", chunk_h_kk_intra_bwd.chunk_mesa_net_h_kk_bwd_intra_kernel, half_dq, common)
    step = common | {"MAX_CG_STEP": 30, "num_warps": 4 if size <= 64 else 8}
    yield Job(
        "fla: decoding step",
        decoding_one_step.mesa_net_decoding_one_step_kernel,
        types | {"q": given, "k": given},
        step,
    )
