"""`benchmarks/op_gpu.py` on small inputs in the interpreter, with its times, ceilings and comparison of bits replaced."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder

from fla_mesa import interpreter
from fla_mesa.doctor import timing

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "op_gpu.py"


@pytest.fixture
def op_gpu(monkeypatch):
    """The script, believing in a GPU: its inputs are on the CPU, and every measurement is one call of one millisecond."""
    from fla.ops import gated_delta_rule, gla, kda, mesa_net  # noqa: F401 (before there seems to be a GPU)

    interpreter.mend_loops()
    spec = importlib.util.spec_from_file_location("op_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "op_gpu", module)
    spec.loader.exec_module(module)
    draw, gate, error_rows = module.draw, module.gate, module.error_rows

    def on_cpu(*arguments, **options):
        return draw(*("cpu" if argument == "cuda" else argument for argument in arguments), **options)

    def measure(f):
        f()
        return timing.Time(1.0, 0.9, 1.1)

    monkeypatch.setattr(module, "draw", on_cpu)
    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(module, "gate", lambda op, device: gate(op, "cpu", T=20, H=1, sizes=(16,)))
    monkeypatch.setattr(module, "error_rows", lambda sizes, device: error_rows(sizes, device, T=40, H=1))
    monkeypatch.setattr(module, "ceilings", lambda device: (1e12, 1e15))
    monkeypatch.setattr(module, "same_bits", lambda H, K: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "GPU")
    return module


FLAGS = ["--tokens", "64", "--lengths", "64", "--heads", "1", "--sizes", "32", "--batches", "1"]


@pytest.mark.skipif(
    not hasattr(InterpreterBuilder, "get_bf16"),
    reason="this triton's interpreter has no bfloat16 constants, as fla's gla uses",
)
def test_every_table_is_written(op_gpu, tmp_path):
    assert op_gpu.main([*FLAGS, "--out", str(tmp_path / "op.md")]) == 0
    report = (tmp_path / "op.md").read_text()
    for op in (
        "fla_mesa, triton",
        "fla_mesa, fla",
        "fla mesa_net, 30 steps",
        "fla gated_delta_rule",
        "fla gla",
    ):
        assert f"| {op} | 64 | 32 |" in report
    assert "| fla kda | 64 | 32 |" in report and "| fla_mesa | 1 | 32 | 1.00" in report and "green" in report
    worst = {}
    for line in report.splitlines():
        if line.startswith(("| triton | 32 |", "| fla | 32 |", "| fla's op, 30 steps | 32 |")):
            name, _, scale, o, gradient = (cell.strip() for cell in line.strip("|").split("|"))
            worst[name, scale] = float(o), float(gradient.split()[0])
    # Both round to bfloat16; fla's solver adds an absolute constant, next to which a small incoming gradient is nothing.
    assert all(max(worst[ours, "1"] + worst[ours, "0.0001"]) < 1e-2 for ours in ("triton", "fla"))
    assert worst["fla's op, 30 steps", "1"][1] < 3e-2 < worst["fla's op, 30 steps", "0.0001"][1]


def test_a_red_gate_times_nothing(op_gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(op_gpu, "gate", lambda op, device: {"o": 2.0})
    assert op_gpu.main([*FLAGS, "--out", str(tmp_path / "op.md")]) == 1
    assert "gate is red" in capsys.readouterr().err and not (tmp_path / "op.md").exists()
