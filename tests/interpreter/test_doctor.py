"""The doctor on the Triton back end, in the interpreter: one size, and of its kernels' configurations those of one."""

import dataclasses

import torch

from fla_mesa.doctor import checks, configurations
from fla_mesa.doctor.checks import Subject
from fla_mesa.ops.triton.plan import STATE_CONFIGS, trusted

HERE = Subject("triton", "cpu", heads=1, sizes=(16,), dtypes=("bfloat16",), repeats=1, quick=True)


def test_accuracy():
    found = list(checks.accuracy(HERE))
    assert found and {f.status for f in found} == {"ok"}


def test_every_configuration_of_a_kernel_runs_in_turn(monkeypatch):
    tuners = configurations.tuners("triton")
    assert {"solve_output_kernel", "solve_backward_kernel", "states_kernel", "step_kernel"} <= set(tuners)
    name = "states_kernel"
    ran, launch = [], tuners[name].fn.run
    monkeypatch.setattr(
        tuners[name].fn, "run", lambda *a, **k: ran.append((k["num_warps"], k["num_stages"])) or launch(*a, **k)
    )
    monkeypatch.setattr(configurations, "tuners", lambda backend: {name: tuners[name]})
    found = list(checks.every_configuration(dataclasses.replace(HERE, quick=False)))
    expected = {(c.num_warps, c.num_stages) for c in trusted(STATE_CONFIGS, {"k": torch.empty(0)})}
    assert [f.status for f in found] == ["ok"] * len(expected) and all(f.subject.startswith(name) for f in found)
    assert set(ran) == expected and len(expected) > 1
    assert "run" not in vars(tuners[name]) and "prune_configs" not in vars(tuners[name])


def test_more_elements_than_32_bits_count(monkeypatch):
    """Were they fewer bits, and were there memory."""
    monkeypatch.setattr(checks, "ELEMENTS", 2**11)
    monkeypatch.setattr(checks, "ROW", (70, 1))
    monkeypatch.setattr(checks, "free_memory", lambda subject: 2**30)
    (found,) = checks.large(HERE)
    assert found.status == "ok" and found.detail == "the last row is what it is alone"
