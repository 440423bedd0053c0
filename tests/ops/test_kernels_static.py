"""The default configuration of every kernel, compiled for GPUs that are not here: no spills in loops, shared memory within the limit.

What holds here holds for every triton that the package allows, not for the newest alone: `make test-triton` runs these tests with the one
that PyTorch's CUDA build brings.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kernels_static = load("kernels_static")
kernels_steps = load("kernels_steps")
SOLVES = ["solve + output", "solve, backward", "solve + output of the rest", "solve of the rest, backward"]
JOBS = ["chunk states", *SOLVES, "chunk states, backward", "keys and values, backward", "decoding step"]


def compile_default(name: str, size: int, arch: int, dtype: str = "bfloat16"):
    job = next(job for job in kernels_static.our_jobs(size, dtype, arch) if job.name == name)
    return kernels_static.compile_for(job, arch, kernels_static.configurations(job)[0])


def default_usage(name: str, size: int, arch: int):
    return compile_default(name, size, arch)[1]


def spills_in_loops(compiled) -> list[str]:
    """Instructions of the machine code that store or load spilled registers each time that an innermost loop goes round."""
    code, loops = kernels_steps.machine_code(compiled.asm["cubin"])
    # What a round of the solve does once, around its steps, may: at K = 64 on sm_90 it loads 44 bytes a thread.
    innermost = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    return [x for a, b in innermost for x in code[a : b + 1] if x.startswith(("LDL", "STL"))]


def test_every_kernel_is_listed():
    assert [job.name for job in kernels_static.our_jobs(64, "bfloat16", 90)] == JOBS


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("name", JOBS)
def test_the_default_configuration_spills_nothing_in_a_loop(name, size, arch):
    """And little outside: which registers live across a loop without being used in it is up to the version of the compiler."""
    compiled, usage = compile_default(name, size, arch)
    assert usage.spill_stores <= 64 and usage.spill_loads <= 64, usage
    if usage.spill_stores or usage.spill_loads:
        assert not spills_in_loops(compiled), usage
    assert usage.shared <= kernels_static.TARGETS[arch].shared_per_block, usage


def test_the_largest_solve_fits_small_shared_memory():
    assert default_usage("solve, backward", 128, 86).shared <= kernels_static.TARGETS[86].shared_per_block


@pytest.mark.parametrize("name", ["solve + output", "decoding step"])
def test_head_size_256_compiles(name):
    usage = default_usage(name, 256, 90)
    assert usage.shared <= kernels_static.TARGETS[90].shared_per_block, usage


@pytest.mark.parametrize("name", ["solve + output", "solve, backward"])
def test_a_step_on_sm_90_costs_less_than_one_of_fla_s_and_reads_no_spilled_register(name):
    """Not a time: instructions, bytes and products, from the machine code. fla takes 30 such steps always."""

    def step(job, nested):
        compiled, _ = kernels_static.compile_for(job, 90, kernels_static.configurations(job)[0])
        code, loops = kernels_steps.machine_code(compiled.asm["cubin"])
        first, last = kernels_steps.iteration(code, loops, nested)
        assert not any(x.startswith(("LDL", "STL")) for x in code[first : last + 1])
        return kernels_steps.cost(code[first : last + 1], warps=4, arch=90)  # 64 rows both

    ours = step(next(job for job in kernels_static.our_jobs(64, "bfloat16", 90) if job.name == name), nested=True)
    theirs = step(next(job for job in kernels_static.fla_jobs(64, "bfloat16") if "CG" in job.name), nested=False)
    assert ours.instructions < theirs.instructions
    assert ours.shared < theirs.shared
    assert ours.products < theirs.products


def test_occupancy_is_that_of_cuda_s_calculator():
    ampere = kernels_static.TARGETS[80]
    assert ampere.occupancy(registers=32, shared=0, warps=4) == 1.0
    assert ampere.occupancy(registers=255, shared=0, warps=8) == 8 / 64
    assert ampere.occupancy(registers=32, shared=100 * 1024, warps=4) == 4 / 64


def test_op_gpu_parses_and_refuses_without_a_gpu(capsys):
    op_gpu = load("op_gpu")
    assert op_gpu.parse([]).lengths[-1] == 65536
    with pytest.raises(SystemExit):
        op_gpu.parse(["--sizes", "0"])
    assert "--sizes must be at least 1; got [0]" in capsys.readouterr().err
    run = subprocess.run(
        [sys.executable, BENCHMARKS / "op_gpu.py"],
        capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert run.returncode == 2 and "needs a CUDA GPU" in run.stderr


def test_op_gpu_s_gate_is_green_for_the_op_and_red_for_a_wrong_one():
    from fla_mesa.ops import chunk_mesa_net

    op_gpu = load("op_gpu")

    def gate(op):
        return op_gpu.gate(op, "cpu", T=20, H=1, sizes=(16,))

    assert op_gpu.is_green(gate(chunk_mesa_net))

    def loose(*args, cg_tolerance, **kwargs):
        return chunk_mesa_net(*args, cg_tolerance=1e-2, **kwargs)

    assert not op_gpu.is_green(gate(loose))
    assert not op_gpu.is_green({"o": float("inf")})
