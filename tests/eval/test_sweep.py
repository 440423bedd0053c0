"""The sweep: its numbers are the model's, its report says what they say."""

from __future__ import annotations

import json
import re

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from fla_mesa.data import synthetic
from fla_mesa.eval.sweep.command import main
from fla_mesa.eval.sweep.measured import Measured, Setting, measure_quality
from fla_mesa.eval.sweep.reading import IGNORE, Reading, Recall, read_suite, read_text
from fla_mesa.eval.sweep.report import cheapest, statements
from fla_mesa.layers.solver import mesa_layers


@pytest.fixture(scope="module")
def model(request):
    return AutoModelForCausalLM.from_pretrained(request.getfixturevalue("mesanet_checkpoint")).eval()


@pytest.fixture(scope="module")
def reading():
    ids = torch.randint(0, 256, (3, 70), generator=torch.Generator().manual_seed(0))

    def last_three(guesses):
        return float((guesses[:, -4:-1] == ids[:, -3:].numpy()).mean())

    return Reading(70, ids, ids, Recall(ids, last_three), "copy")


def test_settings_hold_inside_and_are_restored(model, reading):
    def settings():
        return [(l.max_cg_step_training, l.max_cg_step_decoding, l.cg_tolerance, l.backend) for l in mesa_layers(model)]

    before = settings()
    for setting in (Setting("exact"), Setting("steps", 0), Setting("steps", 3), Setting("tolerance", 0.1)):
        with setting.solver.on(model):
            assert settings() != before
        measure_quality(model, setting, reading, 2)
        assert settings() == before
    assert all(layer.last_stats is None and not layer.record_stats for layer in mesa_layers(model))


def test_quality_is_what_the_model_gives(model, reading):
    """Against the model called directly: loss in all and by position, recall, iterations; whatever the batch size."""
    with torch.no_grad(), Setting("steps", 2).solver.on(model):
        logits = model(input_ids=reading.ids).logits
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), reading.ids[:, 1:], reduction="none")
    right = (logits[:, :-1].argmax(-1) == reading.ids[:, 1:])[:, -3:].float().mean().item()
    for batch_size in (1, 2, 3):
        measured = measure_quality(model, Setting("steps", 2), reading, batch_size)
        assert measured.loss == pytest.approx(losses.mean().item(), rel=1e-4)
        assert list(measured.loss_by_position) == ["1-15", "16-31", "32-63", "64-69"]
        assert measured.loss_by_position["32-63"] == pytest.approx(losses[:, 31:63].mean().item(), rel=1e-4)
        assert measured.recall == pytest.approx(right)
        assert measured.max_iterations == [[2, 2], [2, 2]]
        assert measured.iterations == pytest.approx(2, abs=0.1)  # a position whose q has converged sooner spends fewer


def test_more_compute_comes_closer_to_the_exact_solve(model, reading):
    by_kind = {}
    for setting in (
        Setting("exact"),
        *(Setting("steps", n) for n in (0, 1, 30)),
        *(Setting("tolerance", t) for t in (1e-1, 1e-5)),
    ):
        by_kind[setting.name] = measure_quality(model, setting, reading, 3)
    exact = by_kind["exact"].loss
    distance = {name: abs(measured.loss - exact) for name, measured in by_kind.items()}
    assert distance["30 steps"] < 1e-4 and distance["tolerance 1e-05"] < 1e-4
    assert (
        distance["1 steps"] > 10 * distance["30 steps"]
        and distance["tolerance 1e-01"] > 10 * distance["tolerance 1e-05"]
    )
    assert distance["0 steps"] > 1e-3
    assert (
        by_kind["tolerance 1e-01"].iterations < by_kind["tolerance 1e-05"].iterations < by_kind["30 steps"].iterations
    )
    assert by_kind["exact"].iterations == by_kind["0 steps"].iterations == 0
    positions = torch.tensor(by_kind["tolerance 1e-05"].iterations_by_position)
    assert positions.shape == (2, 2, 4)  # layers, heads, ranges
    assert (positions[..., 1:] > 1).all()


def test_every_length_reads_the_same_text(mesanet_checkpoint, tmp_path):
    from transformers import AutoTokenizer

    (tmp_path / "text.txt").write_text("".join(chr(97 + i % 26) for i in range(5000)))
    tokenizer = AutoTokenizer.from_pretrained(mesanet_checkpoint)
    short, middle, long = read_text(tokenizer, str(tmp_path / "text.txt"), [100, 400, 800], 3, needles=2, seed=0)
    assert [list(r.ids.shape) for r in (short, middle, long)] == [[24, 100], [6, 400], [3, 800]]
    assert torch.equal(short.ids.flatten(), long.ids.flatten())
    assert short.recall is None  # no needle fits into so few tokens
    for row in long.recall.ids:
        answer = bytes(row.tolist()).decode().rstrip("\0")[-8:]
        assert answer[0] == " " and answer[1:].isdigit() and bytes(row.tolist()).decode().count(answer[1:]) == 2
    right = torch.nn.functional.pad(long.recall.ids[:, 1:], (0, 1)).numpy()
    assert long.recall.score(right) == 1 and long.recall.score(right + 1) == 0
    with pytest.raises(ValueError, match="context_lengths must all divide the longest, 800; got 300"):
        read_text(tokenizer, str(tmp_path / "text.txt"), [300, 800], 3, needles=2, seed=0)
    with pytest.raises(ValueError, match="hold 6 blocks of 800; 9 are wanted"):
        read_text(tokenizer, str(tmp_path / "text.txt"), [800], 9, needles=2, seed=0)


def test_a_suite_is_read_at_every_length():
    readings = read_suite("mqar:vocab_size=64,length=32,num_pairs=2", [32, 64], 5)
    assert [r.length for r in readings] == [32, 64]
    assert all(((r.labels != IGNORE).sum(1) == 2).all() for r in readings)
    (own,) = read_suite("mad-compression", [32, 64], 5)
    assert own.length == synthetic.get("mad-compression").tasks[0].columns


def test_recall_on_a_suite_is_scored_by_its_rule():
    """RegBench takes any symbol that the automaton allows, whether or not the walk took it."""
    spec = "regbench:strings=(2,3),string_length=(2,6)"
    (reading,) = read_suite(spec, [32], 3)
    task = synthetic.get(spec).tasks[0]
    rows = task.generate("validation", 3, 0)
    allowed = rows["allowed"][:, 1:]
    other = (allowed & -allowed) | (allowed == 0)  # the lowest symbol that may stand there
    guesses = torch.nn.functional.pad(torch.from_numpy(other).double().log2().long(), (0, 1)).numpy()
    assert reading.recall.score(guesses) == 1
    assert (guesses[:, :-1] != rows["labels"][:, 1:])[rows["labels"][:, 1:] >= 0].any()


def made(kind, value, loss, iterations):
    return Measured(Setting(kind, value), 64, loss=loss, mean_iterations=[[iterations]], max_iterations=[[30]])


def test_the_report_names_the_smallest_compute_within_a_thousandth_of_the_best():
    results = [made("steps", 5, 2.1, 5), made("steps", 10, 2.0019, 10), made("steps", 30, 2.0001, 30), made("tolerance", 1e-3, 2.003, 7),
               made("tolerance", 1e-4, 2.001, 9), made("exact", 0, 2.0, 0)]  # fmt: skip
    assert cheapest(results).setting.name == "tolerance 1e-04"
    first, second = statements(results, 64)
    assert first == (
        "The smallest compute within 0.1 % of the best loss (2.0000, exact) is tolerance 1e-04: 9.00 iterations on average, loss 2.0010."
    )
    assert second == "Tolerance 1e-4 gives +0.045 % of the loss of 30 fixed steps with 30 % of the iterations."
    poor = [made("steps", 5, 2.1, 5), made("exact", 0, 2.0, 0)]
    assert statements(poor, 64) == ["No iterative setting comes within 0.1 % of the best loss (2.0000, exact)."]


def test_the_command_writes_tables_numbers_and_pictures(suite_checkpoint, tmp_path, capsys):
    code = main(
        [str(suite_checkpoint), "--context_lengths", "32,64", "--sequences", "6", "--steps", "0,1,30", "--tolerances", "1e-2,1e-4",
         "--repeats", "1", "--output_dir", str(tmp_path), "--device", "cpu"]
    )  # fmt: skip
    assert code == 0
    assert "The smallest compute within 0.1 % of the best loss" in capsys.readouterr().out
    report = (tmp_path / "sweep.md").read_text()
    assert "- data: mqar:" in report and "- seed: " not in report
    assert "## Context of 32 tokens" in report and "## Context of 64 tokens" in report
    data = json.loads((tmp_path / "sweep.json").read_text())
    assert set(data["smallest_compute"]) == {"32", "64"}
    names = ["0 steps", "1 steps", "30 steps", "tolerance 1e-02", "tolerance 1e-04", "exact"]
    assert [row["name"] for row in data["results"]] == names * 2
    for row in data["results"]:
        iterative = row["name"] != "exact"
        assert (
            (row["prefill_ms"] is not None)
            == (row["decode_ms"] is not None)
            == (row["memory_mib"] is not None)
            == iterative
        )
        if iterative:
            assert row["prefill_ms"] > 0 and row["decode_ms"] > 0 and row["memory_mib"] > 50
        assert row["loss"] > 0 and 0 <= row["recall"] <= 1
        assert re.search(rf"^\| {re.escape(row['name'])} +\| +{row['loss']:.4f} \|", report, re.MULTILINE)
    for name in ("quality_against_compute.png", "iterations.png"):
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["LLAMA"], "is a 'llama'; only Mesa layers"),
        (["/nowhere"], "checkpoint '/nowhere': there is no such directory"),
        (["MESANET", "--steps", "-1"], "steps must be integers >= 0; got -1"),
        (["MESANET", "--tolerances", "0"], "tolerances must be numbers in (0, 1); got 0.0"),
        (["MESANET", "--most_steps", "0"], "most_steps must be an integer >= 1; got 0"),
        (["MESANET", "--sequences", "0"], "sequences must be an integer >= 1; got 0"),
        (["MESANET", "--context_lengths", "1"], "context_lengths must be integers >= 2; got 1"),
        (["MESANET", "--text", "/nowhere.txt"], "/nowhere.txt"),
        (["MESANET", "--device", "cuda:77"], "device: this machine has cpu"),
        (["MESANET", "--output_dir", f"{__file__}/sweep"], "test_sweep.py' is a file"),
        (["SUITE", "--text", "stdlib"], "text: the checkpoint was trained on mqar"),
        (["SUITE", "--needles", "3"], "needles: the checkpoint was trained on mqar"),
        (["SUITE", "--seed", "0"], "seed: the checkpoint was trained on mqar"),
    ],
)
def test_bad_arguments(arguments, message, llama_checkpoint, mesanet_checkpoint, suite_checkpoint, capsys):
    paths = {"LLAMA": str(llama_checkpoint), "MESANET": str(mesanet_checkpoint), "SUITE": str(suite_checkpoint)}
    assert main([paths.get(argument, argument) for argument in arguments]) == 2
    assert message in capsys.readouterr().err
