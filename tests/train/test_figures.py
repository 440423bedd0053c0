"""Sums over rows, tokens a second, the lines that are shown, and the picture."""

import math
import struct
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import EvalPrediction, TrainerControl, TrainerState

from fla_mesa.train import evaluation, throughput
from fla_mesa.train.evaluation import ValidationFigures, row_sums
from fla_mesa.train.plot import loss_curve
from fla_mesa.train.progress import Progress, clock
from fla_mesa.train.throughput import Throughput


@pytest.mark.parametrize("at_once", [1, 1 << 26])
def test_row_sums_against_cross_entropy(monkeypatch, at_once):
    monkeypatch.setattr(evaluation, "_LOGITS_A_STEP", at_once)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, 11, generator=generator)
    labels = torch.randint(0, 11, (5, 7), generator=generator)
    labels[1, 3:] = -100
    labels[2] = -100
    labels[3, ::2] = 10  # stands for no text
    sums, counts = row_sums(logits, labels, end_of_text=10)
    for row in range(5):
        targets = labels[row, 1:]
        kept = targets != -100
        nats = (
            F.cross_entropy(logits[row, :-1][kept], targets[kept], reduction="sum") if kept.any() else torch.tensor(0.0)
        )
        right = (logits[row, :-1].argmax(-1) == targets).sum()
        assert sums[row, 0].item() == pytest.approx(nats.item(), rel=1e-6)
        assert sums[row, 1:].tolist() == [right, (kept & (targets != 10)).sum()]
        assert counts[row] == kept.sum()


def test_figures_weigh_tokens_not_rows_and_may_come_in_batches():
    rows = torch.tensor([[10.0, 1.0, 4.0], [2.0, 1.0, 1.0]])
    counts = torch.tensor([5, 1])
    figures = ValidationFigures(bytes_per_token=2.0)
    whole = figures(EvalPrediction(rows.numpy(), counts.numpy()))
    assert whole == {"loss": 2.0, "accuracy": 2 / 6, "bits_per_byte": pytest.approx(12 / math.log(2) / (5 * 2.0))}
    assert figures(EvalPrediction(rows[:1], counts[:1]), compute_result=False) == {}
    assert figures(EvalPrediction(rows[1:], counts[1:]), compute_result=True) == whole
    assert "bits_per_byte" not in ValidationFigures(None)(EvalPrediction(rows, counts))


def test_throughput_takes_out_the_first_step_and_pauses(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock.now)
    measured, state = Throughput(), SimpleNamespace(global_step=0, max_steps=3)
    assert measured.tokens_per_second() is None
    measured.on_train_begin(None, state, None)
    for step, seconds in ((1, 50.0), (2, 2.0), (3, 3.0)):
        measured.add(10)
        clock.now += seconds
        state.global_step = step
        measured.on_step_end(None, state, None)
        if step == 1:
            assert measured.tokens_per_second() == 10 / 50
        with measured.paused():
            clock.now += 1000.0
    assert measured.tokens_per_second() == 20 / 5
    assert measured.tokens_per_second(processes=4) == 80 / 5


def test_lines_where_there_is_no_terminal(capsys):
    progress = Progress(Throughput(), lines=True)
    arguments = SimpleNamespace(world_size=1)
    state = TrainerState(max_steps=200, is_world_process_zero=True)
    progress.on_train_begin(arguments, state, TrainerControl())
    state.global_step = 20
    progress.on_log(arguments, state, None, logs={"loss": 2.5, "learning_rate": 1e-3, "grad_norm": 1.0})
    progress.on_log(arguments, state, None, logs={"eval_loss": 2.25, "eval_bits_per_byte": 3.2, "eval_accuracy": 0.5})
    progress.on_log(arguments, state, None, logs={"train_runtime": 3.0, "train_loss": 2.0})
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("step  20/200  loss 2.5000  learning rate 1.00e-03") and first.endswith("left")
    assert second == "step  20/200  validation loss 2.2500  3.2000 bits per byte"


def test_only_the_first_process_shows_anything(capsys):
    progress = Progress(Throughput(), lines=True)
    state = TrainerState(max_steps=200, is_world_process_zero=False)
    progress.on_train_begin(None, state, None)
    progress.on_log(None, state, None, logs={"loss": 2.5, "learning_rate": 1e-3})
    assert capsys.readouterr().err == ""


def test_clock():
    assert [clock(seconds) for seconds in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]


def test_picture(tmp_path):
    path = tmp_path / "loss.png"
    loss_curve({"train": [[1, 5.0], [2, 4.0]], "validation": []}, "a title", path)
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data.startswith(b"\x89PNG") and (width, height) == (1050, 600)
    loss_curve({"train": [], "validation": []}, "nothing logged", path)
