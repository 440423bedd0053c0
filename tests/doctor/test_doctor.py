"""`fla-mesa doctor` on a machine without a GPU, and what its report makes of findings."""

import functools
import json
from importlib.metadata import version

import pytest
import torch

from fla_mesa.doctor import checks, command, report, timing
from fla_mesa.doctor.checks import BOUNDS, Finding, Subject, accuracy, poisoned
from fla_mesa.doctor.truth import Truth, draw
from fla_mesa.ops import chunk_mesa_net

HERE = Subject("pytorch", "cpu", heads=1, sizes=(16,), dtypes=("float32",), quick=True)


def test_without_a_gpu_it_says_what_it_could_not_check(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "WITHOUT_GPU", command.WITHOUT_GPU | {"sizes": (16,)})
    assert command.main(["--backends", "fla,pytorch", "--output", str(tmp_path / "doctor.json")]) == 0
    shown = capsys.readouterr().out
    for line in (
        "GPU: none: kernels run in Triton's interpreter",
        'backend="fla": right in all that was checked',
        'backend="pytorch": right in all that was checked',
        "- fla: speed: no GPU here",
        'use backend="fla"',
    ):
        assert line in shown
    found = json.loads((tmp_path / "doctor.json").read_text())
    assert found["environment"]["torch"] == version("torch")
    by_check = {f["check"]: f for f in found["findings"]["fla"]}
    assert set(by_check) == set(checks.CHECKS)
    assert by_check["configurations"]["status"] == "ok" and by_check["CUDA graph"]["status"] == "not checked"


def test_a_process_that_ends_is_a_finding(monkeypatch):
    monkeypatch.setattr(command.sys, "executable", "false")
    (finding,) = command.run_worker(HERE, minutes=1)
    assert finding["status"] == "failed" and "its process ended with 1" in finding["detail"]


def test_a_wrong_op_is_found(monkeypatch):
    assert {f.status for f in accuracy(HERE)} == {"ok"}
    monkeypatch.setattr(checks, "op_of", lambda subject: functools.partial(chunk_mesa_net, cg_tolerance=0.3))
    wrong = list(accuracy(HERE))
    assert {f.status for f in wrong} == {"wrong"} and "off by" in wrong[0].detail


def test_memory_that_nobody_wrote_is_found(monkeypatch):
    def reads_it(*inputs, **options):
        o, *states = chunk_mesa_net(*inputs, **options)
        return o + torch.empty_like(o), *states

    assert [f.status for f in poisoned(HERE)] == ["ok"]
    monkeypatch.setattr(checks, "op_of", lambda subject: reads_it)
    (finding,) = poisoned(HERE)
    assert finding.status == "wrong" and json.dumps(finding.asdict(), allow_nan=False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_a_back_end_does_not_take_is_not_wrong():
    (finding,) = accuracy(Subject("triton", "cpu", sizes=(16,), dtypes=("float32",), quick=True))
    assert finding.status == "not taken" and "takes GPU tensors" in finding.detail


def test_times_are_taken_at_the_shape_asked_for(monkeypatch):
    """With a clock and a memory that are not a GPU's."""
    drawn = []
    monkeypatch.setattr(
        checks, "draw", lambda *a, **o: drawn.append(a[:5]) or draw(*("cpu" if x == "cuda" else x for x in a), **o)
    )
    monkeypatch.setattr(timing, "measure", lambda f: f() and timing.Time(1.0, 0.9, 1.1))
    monkeypatch.setattr(timing, "peak", lambda f: 2.0**30)
    (found,) = checks.speed(Subject("pytorch", heads=3, sizes=(8,), dtypes=("float32",), tokens=40, length=10))
    assert drawn == [(4, 10, 3, 8, 8), (8, 1, 3, 8, 8)]
    assert found.numbers == {
        "forward, ms": 1.0, "forward + backward, ms": 1.0, "memory, GiB": 1.0, "decoding step of 8, ms": 1.0
    }  # fmt: skip


def test_inputs_are_shifted_and_strided():
    truth = Truth.of(draw(1, 5, 1, 8, 8, torch.bfloat16, "cpu", states=1))
    moved = checks.strided(truth)
    assert not moved.inputs["q"].is_contiguous() and torch.equal(moved.inputs["q"], truth.inputs["q"])
    assert max(moved.errors(chunk_mesa_net).values()) < BOUNDS["bfloat16"]


def finding(check, status="ok", detail="", **numbers):
    return Finding(check, "bfloat16, K = 64", status, detail, numbers).asdict()


def test_the_fastest_that_is_right_is_advised():
    time = "forward + backward, ms"
    found = {
        "fla": [finding("accuracy", error=2e-3), finding("speed", **{time: 3.0})],
        "triton": [finding("accuracy", "wrong", "dq off by 1"), finding("speed", **{time: 1.0})],
        "pytorch": [finding("accuracy", error=1e-3), finding("speed", **{time: 9.0})],
        "fla's ops": [finding("speed", **{time: 2.0})],
    }
    shown = report.text({"GPU": "one"}, found)
    assert 'bfloat16, K = 64: use backend="fla"' in shown
    assert 'backend="triton": wrong: accuracy (bfloat16, K = 64): dq off by 1' in shown
    assert "1 of 1 WRONG" in shown and "1 ok, <= 2.0e-03" in shown
    assert "no back end was found right" in report.text({}, {"triton": found["triton"]})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backends", "fla,cuda"], "--backends must be among fla, triton, pytorch; got cuda"),
        (["--dtypes", "float64"], "--dtypes must be among bfloat16, float16, float32; got float64"),
        (["--sizes", "64,big"], "--sizes must be comma-separated integers; got '64,big'"),
        (["--heads", "0"], "--heads must be above 0; got 0"),
    ],
)
def test_bad_flags(flags, message, capsys):
    assert command.main(flags) == 2
    assert message in capsys.readouterr().err
