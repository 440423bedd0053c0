"""The default configuration of every kernel, compiled for GPUs that are not here: no spills in loops, shared memory within the limit.

What holds here holds for every triton that the package allows, not for the newest alone: `make test-triton` runs these tests with the one
that PyTorch's CUDA build brings.
"""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fla_mesa.ops import gpu
from fla_mesa.ops.triton import plan
from fla_mesa.testing import machine_code
from fla_mesa.testing.compiled import TARGETS, compile_for, configurations, fla_jobs, our_jobs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SOLVES = ["solve + output", "solve, backward"]
OTHERS = ["chunk states", "chunk states, backward", "keys and values, backward", "decoding step"]
# Bytes of registers that a default configuration may spill, stores and loads each; anywhere but in a loop.
SPILLS = {80: 64, 90: 64}
SPILLS_ELSEWHERE = 128
# sm_89 has sm_86's plan; kernels of larger heads depend little on the GPU.
DEFAULTS = [
    *((name, size, arch) for arch in (80, 90) for size in (64, 128) for name in (*SOLVES, *OTHERS)),
    *((name, 64, arch) for arch in (86, 100, 120) for name in (*SOLVES, *OTHERS)),
    ("keys and values, backward", 64, 89),
    *((name, 128, 120) for name in (SOLVES[1], "keys and values, backward")),
]


def load(name: str):
    """A benchmark, as the program that is tested here."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def jobs_for(size: int, arch: int, dtype: str = "bfloat16"):
    return {job.name: job for job in our_jobs(size, dtype, arch)}


def compile_default(job, arch: int):
    return compile_for(job, arch, configurations(job, arch)[0])


def spills_in_loops(code: list[str], loops: list[tuple[int, int]]) -> list[str]:
    """Instructions of the machine code that store or load spilled registers each time that an innermost loop goes round."""
    # What a round of the solve does once, around its steps, may: at K = 64 on sm_90 it loads 44 bytes a thread.
    innermost = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    return [x for a, b in innermost for x in code[a : b + 1] if x.startswith(("LDL", "STL"))]


def step_of(code, loops, nested: bool):
    """What a step of a solve costs that has tiles of 64 rows and four warps. Not a time: instructions, bytes and products."""
    first, last = machine_code.iteration(code, loops, nested)
    return machine_code.cost(code[first : last + 1], warps=4, arch=90)


def test_every_kernel_is_listed():
    assert set(jobs_for(64, 90)) == {*SOLVES, *OTHERS}


@pytest.mark.parametrize(("name", "size", "arch"), DEFAULTS)
def test_the_default_configuration(name, size, arch):
    """Compiles, fits, spills nothing in a loop and little outside: which registers live across a loop is up to the compiler's version.

    And a step of the solve at K = 64 on sm_90, of which this op takes a third, costs less than one of fla's.
    """
    job = jobs_for(size, arch)[name]
    compiled, usage = compile_default(job, arch)
    assert usage.shared <= TARGETS[arch].shared_per_block, usage
    compared = name in SOLVES and size == 64 and arch == 90
    if compared or usage.spill_stores or usage.spill_loads:
        code, loops = machine_code.machine_code(compiled.asm["cubin"])
        assert not spills_in_loops(code, loops), usage
    if compared:
        theirs = next(
            job for job in fla_jobs(64, "bfloat16") if "CG" in job.name and ("back" in job.name) == ("back" in name)
        )
        ours = step_of(code, loops, nested=True)
        cost = step_of(*machine_code.machine_code(compile_default(theirs, 90)[0].asm["cubin"]), nested=False)
        assert ours.instructions < cost.instructions and ours.shared < cost.shared and ours.products < cost.products
    limit = SPILLS.get(arch, SPILLS_ELSEWHERE)
    assert usage.spill_stores <= limit and usage.spill_loads <= limit, usage


@pytest.mark.parametrize("name", ["solve + output", "decoding step"])
def test_head_size_256_compiles(name):
    _, usage = compile_default(jobs_for(256, 90)[name], 90)
    assert usage.shared <= TARGETS[90].shared_per_block, usage


@pytest.mark.parametrize(
    ("name", "arch"), [("chunk states", 80), *((name, arch) for name in SOLVES for arch in (80, 90))]
)
def test_kernels_of_float32_inputs_spill_little(name, arch):
    """The float32 iteration is theirs alone, and the states' kernel has other blocks."""
    _, usage = compile_default(jobs_for(64, arch, "float32")[name], arch)
    assert usage.spill_stores <= 64, usage


def test_fla_s_kernels_take_no_more_shared_memory_than_the_back_end_says():
    from fla_mesa.ops import fla

    job = next(job for job in fla_jobs(128, "bfloat16") if job.name == "fla: H part, backward")
    assert fla.SMALL == 64 and compile_default(job, 90)[1].shared <= fla.LARGE_NEEDS


@pytest.mark.parametrize(
    ("capability", "triton", "stages", "warps"),
    [
        ((8, 0), (3, 6), 2, 8),
        ((9, 0), (3, 7), 2, 4),
        ((9, 0), (3, 9), 2, 8),
        ((10, 0), (3, 7), 1, 8),
        ((10, 3), (3, 9), 2, 8),
        ((12, 0), (3, 7), 2, 8),
    ],
)
def test_configurations_that_a_compiler_is_known_to_get_wrong_are_not_tried(
    capability, triton, stages, warps, monkeypatch
):
    monkeypatch.setattr(plan, "treatment", lambda kind: gpu._treatment(kind, triton))
    place = {"k": SimpleNamespace(device=gpu.Gpu("nvidia", capability))}
    solve = {"PRECISION": "fp16 once", "BK": 64}
    found = [
        *plan.trusted(plan.STATE_CONFIGS, place),
        *plan.gradient_configs(plan.GRADIENT_CONFIGS, place, BR=64),
        *plan.solve_configs(plan.SOLVE_CONFIGS, place, **solve),
    ]
    assert max(c.num_stages for c in found) == stages and max(c.num_warps for c in found) == warps
    assert plan.gradient_configs(plan.GRADIENT_CONFIGS, place, BR=16)[0].num_stages == 1


def test_occupancy_is_that_of_cuda_s_calculator():
    ampere = TARGETS[80]
    assert ampere.occupancy(registers=32, shared=0, warps=4) == 1.0
    assert ampere.occupancy(registers=255, shared=0, warps=8) == 8 / 64
    assert ampere.occupancy(registers=32, shared=100 * 1024, warps=4) == 4 / 64


def test_a_training_step_is_counted_in_bytes_too():
    kernels_pass = load("kernels_pass")
    jobs = {job.name: job for job in kernels_pass.jobs(64)}
    rows, numbers, state = 64, 4, 64 * 64 // 64
    assert kernels_pass.moved(jobs["chunk states"], 64) == 2 * 2 * rows + 2 * numbers + 2 * 4 * state
    assert kernels_pass.moved(jobs["fla: chunk states"], 64) == 2 * 2 * rows + 2 * numbers + (4 + 2) * state
    assert all(kernels_pass.passes(job, 64) for job in jobs.values())


def test_op_gpu_parses_and_refuses_without_a_gpu(capsys, monkeypatch):
    op_gpu = load("op_gpu")
    assert op_gpu.parse([]).lengths[-1] == 65536
    with pytest.raises(SystemExit):
        op_gpu.parse(["--sizes", "0"])
    assert "--sizes must be at least 1; got [0]" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert op_gpu.main([]) == 2 and "needs a CUDA GPU" in capsys.readouterr().err


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
