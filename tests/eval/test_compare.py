"""`fla-mesa compare`: what it trains, keeps, reports and survives. Its jobs run in this process where a test is not about them."""

import contextlib
import errno
import functools
import io
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

from fla_mesa import cli
from fla_mesa.data import regression, synthetic
from fla_mesa.data.text import TEXT_SEQ_LEN
from fla_mesa.data.tokenizer import byte_tokenizer
from fla_mesa.eval.compare import cell as cells
from fla_mesa.eval.compare import columns, pictures, suite
from fla_mesa.eval.compare import command as compare
from fla_mesa.eval.compare import flags as flags_
from fla_mesa.eval.compare import folder as folders
from fla_mesa.eval.compare.cell import Cell, CellResult
from fla_mesa.eval.compare.display import Display, Estimate
from fla_mesa.eval.compare.flags import PRESETS, read_preset
from fla_mesa.eval.compare.paired import Difference, t_quantile
from fla_mesa.eval.compare.plan import parse
from fla_mesa.eval.compare.results import ModelResult
from fla_mesa.eval.compare.run import _Runner, _stored
from fla_mesa.eval.compare.variants import Variant
from fla_mesa.eval.measure.trained import Metrics, Trained
from fla_mesa.json_files import read_json
from fla_mesa.models import zoo
from fla_mesa.report import tables
from fla_mesa.report.tables import MORE, Spread, digits, whole
from fla_mesa.train import attempt
from fla_mesa.train import command as train_command
from fla_mesa.train.attempt import Outcome
from fla_mesa.train.interrupt import Interrupted
from fla_mesa.train.overrides import split_outside_brackets
from fla_mesa.train.recipe import make_config, prepare
from fla_mesa.train.settings import build, words
from fla_mesa.train.settings import parse as parse_training
from fla_mesa.train.worker import Worker
from tests.eval.conftest import SMALL


def run(text, folder, *flags) -> int:
    return compare.main([*SMALL, "--data", str(text), "--output_dir", str(folder), *flags])


def metrics_of(folder, model, seed=1):
    return Metrics.read(folder / f"cells/matched-{model}/lr0.003-seed{seed}")


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def without_times(found):
    """A report with all that may vary from run to run taken out."""
    found = json.loads(json.dumps(found))
    for row in found["models"]:
        for name in ("training_tokens_per_second", "prefill_tokens_per_second", "decode_tokens_per_second"):
            row.pop(name)
        row.pop("training_peak_bytes")
    for name in ("command", "run", "sections"):
        found.pop(name)
    return found


def test_the_report_says_at_which_commits_and_on_which_devices_its_runs_were_made(text, tmp_path, here):
    assert run(text, tmp_path, "--models", "gla,delta_net") == 0
    assert "several devices" not in (tmp_path / "report.md").read_text() and (tmp_path / "quality_speed.png").exists()
    made_at = report_of(tmp_path)["run"]["commit"]
    assert f"- commit: {made_at}\n" in (tmp_path / "report.md").read_text() or made_at is None
    (path,) = (tmp_path / "cells/matched-gla").glob("*/metrics.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "0123456789ab", "device": "another (A100)"}))
    assert run(text, tmp_path, "--models", "gla,delta_net") == 0
    circumstances = report_of(tmp_path)["run"]
    assert "0123456789ab" in circumstances["trained_at"]
    said = (tmp_path / "report.md").read_text()
    assert not (tmp_path / "quality_speed.png").exists()
    assert "The runs are from several devices" in said and f"- device: {'; '.join(circumstances['devices'])}; " in said
    assert circumstances["devices"][0] == "another (A100)" and len(circumstances["devices"]) == 2
    if made_at is not None:
        assert f"; trained at 0123456789ab, {made_at}\n" in (tmp_path / "report.md").read_text()


def test_a_comparison_from_training_to_pictures_and_its_going_on(text, tmp_path, here, capsys):
    flags = ("--models", "mesanet,transformer", "--seeds", "1,2", "--lr", "3e-3,1e20")
    assert run(text, tmp_path / "a", *flags) == 0
    found = report_of(tmp_path / "a")
    out, err = capsys.readouterr()

    # Every cell was run, the best learning rate kept, the other one reported with the step at which it diverged.
    assert sum(job[0] == "train" for job in here) == 8 and sum(job[0] == "measure" for job in here) == 4
    for row in found["models"]:
        assert row["learning_rate"] == 3e-3 and row["seeds"] == 2 and row["training_tokens_per_second"] > 0
        assert [(f["status"], f["step"] in (1, 2, 3, 4)) for f in row["failures"]] == [("diverged", True)] * 2
        losses = [
            json.loads((tmp_path / "a" / "cells" / row["zoo_name"] / f"lr0.003-seed{seed}/metrics.json").read_text())[
                "loss"
            ]
            for seed in (1, 2)
        ]
        assert row["loss"]["mean"] == pytest.approx(np.mean(losses)) and row["loss"]["std"] == pytest.approx(
            np.std(losses, ddof=1)
        )
        assert len(row["loss_by_position"]) == 4 * 32 - 1
        assert set(row["state_bytes"]) == {"32", "128"}
        assert row["mean_loss_by_learning_rate"]["1e+20"] is None
    mesanet, transformer = found["models"]
    assert mesanet["state_bytes"]["32"] == mesanet["state_bytes"]["128"]
    # H_kk and H_kv of 2 layers and heads in float32, and the last 4 inputs of two convolutions of width 32.
    assert mesanet["state_bytes"]["32"] == 4 * 2 * (2 * 2 * 16 * 16 + 3 * 4 * 32)
    assert transformer["state_bytes"]["128"] - transformer["state_bytes"]["32"] == 4 * 2 * 2 * 32 * (128 - 32)

    markdown = (tmp_path / "a" / "report.md").read_text()
    assert "Matched parametrization" in markdown and "diverged" in markdown and "| mesanet" in markdown
    assert "the same 256 tokens" in markdown and " ± " in markdown and "Losses are in nats a token." in markdown
    for name in ("loss_curves.png", "loss_by_position.png", "quality_speed.png"):
        assert f"({name})" in markdown
        assert imread(tmp_path / "a" / name).std() > 0.05  # something is drawn
    assert "bits per byte" in out and "left" in err and "DIVERGED" in err

    # Again: nothing is run. A model more: only that is run. One seed less: the report is of what was asked for.
    here.clear()
    assert run(text, tmp_path / "a", *flags) == 0 and not here
    assert run(text, tmp_path / "a", "--models", "mesanet,gla", "--seeds", "1") == 0
    assert [job for job in here if job[0] == "train"] == [("train", "matched-gla")]
    assert [row["seeds"] for row in report_of(tmp_path / "a")["models"]] == [1, 1]
    assert "shaded" in markdown and "shaded" not in (tmp_path / "a" / "report.md").read_text()

    # Elsewhere with the same seeds: the same figures to the last digit.
    assert run(text, tmp_path / "b", "--models", "mesanet", "--seeds", "1,2") == 0
    assert not (tmp_path / "b" / "quality_speed.png").exists()  # of one model
    (again,), first = (without_times(json.loads(json.dumps(x)))["models"] for x in (report_of(tmp_path / "b"), found))
    for name in ("failures", "mean_loss_by_learning_rate"):  # there were two learning rates before
        first[0].pop(name), again.pop(name)
    assert again == first[0]

    # Other settings are another comparison.
    capsys.readouterr()
    assert run(text, tmp_path / "a", *flags, "--max_steps", "5") == 2
    assert "had other settings: max_steps was 4 and is now 5" in capsys.readouterr().err


@pytest.fixture
def unmeasured(measured_alone):
    """For tests of what is trained."""
    measured_alone()


def trainings(here):
    return [job for job in here if job[0] == "train"]


def counted(capsys):
    """What progress said: how many pieces of work of how many were done, line by line."""
    lines = re.findall(r"^\[(\d+)/(\d+)\]", capsys.readouterr().err, re.MULTILINE)
    return [(int(done), int(total)) for done, total in lines]


def test_one_seed_runs_the_grid_and_the_others_run_at_its_best(text, tmp_path, here, unmeasured, capsys):
    """In a folder that an earlier command left with another seed and rates."""
    assert run(text, tmp_path, "--models", "gla", "--seeds", "2", "--lr", "1e-2,1e20") == 0
    here.clear()
    counted(capsys)
    flags = ("--models", "gla", "--seeds", "1,2,3", "--lr", "1e-5,3e-3,1e-2")
    assert run(text, tmp_path, *flags, "--grid_seeds", "1") == 0
    found = report_of(tmp_path)
    (row,) = found["models"]
    folder = tmp_path / "cells/matched-gla"
    losses = {rate: Metrics.read(folder / f"lr{rate}-seed1").loss for rate in ("1e-05", "0.003", "0.01")}
    best = min(losses, key=losses.__getitem__)
    assert row["mean_loss_by_learning_rate"] == pytest.approx(losses) and row["learning_rate"] == float(best)
    assert row["loss"]["mean"] == np.mean([Metrics.read(folder / f"lr{best}-seed{seed}").loss for seed in (1, 2, 3)])
    assert found["grid_seeds"] == [1] and found["seeds"] == [1, 2, 3] and row["seeds"] == 3
    ran = {f"lr{rate}-seed1" for rate in losses} | {f"lr{best}-seed{seed}" for seed in (2, 3)}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == ran | {"lr0.01-seed2", "lr1e+20-seed2"}
    assert len(trainings(here)) == 5 - (best == "0.01")  # where seed 2 was found
    assert counted(capsys) == [(done, 8) for done in range(1, 6)]  # 5 trainings and 3 measurements
    assert (
        "Learning rates 1e-05, 0.003, 0.01 on seed 1; each model keeps the one with the least validation loss, at which "
        "the other seeds ran." in (tmp_path / "report.md").read_text()
    )
    # All seeds on the grid later: what ran is kept.
    here.clear()
    assert run(text, tmp_path, *flags) == 0
    assert len(trainings(here)) == 9 - 5 - (best != "0.01") and report_of(tmp_path)["grid_seeds"] == [1, 2, 3]


def test_weight_decays_are_a_second_dimension_of_the_grid(text, tmp_path, here, unmeasured, capsys):
    """In a folder of one weight decay, whose runs are found."""
    one = ("--models", "gla", "--lr", "3e-3", "--weight_decay", "0.2")
    assert run(text, tmp_path, *one) == 0
    folder, found = tmp_path / "cells/matched-gla", report_of(tmp_path)
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["lr0.003-seed1"]
    assert found["models"][0]["mean_loss_by_learning_rate"].keys() == {"0.003"} and found["weight_decays"] == [0.2]
    assert "weight decay |" not in (tmp_path / "report.md").read_text()
    here.clear()
    flags = (
        "--models",
        "gla",
        "--lr",
        "3e-3,1e-2",
        "--weight_decay",
        "0.2,0,300",
        "--seeds",
        "1,2",
        "--grid_seeds",
        "1",
    )
    assert run(text, tmp_path, *flags) == 0
    losses = {}
    for rate in ("0.003", "0.01"):
        for decay, name in (("0.2", ""), ("0", "-wd0"), ("300", "-wd300")):
            metrics = Metrics.read(folder / f"lr{rate}{name}-seed1")
            losses[f"{rate} weight decay {decay}"] = metrics.loss
            assert metrics.everything["settings"]["weight_decay"] == float(decay)
    (row,) = report_of(tmp_path)["models"]
    assert row["mean_loss_by_learning_rate"] == losses and len(trainings(here)) == 6 - 1 + 1
    best = min(losses, key=losses.__getitem__)
    assert f"{row['learning_rate']:g} weight decay {row['weight_decay']:g}" == best and row["seeds"] == 2
    assert len(set(losses.values())) == 6
    said = (tmp_path / "report.md").read_text()
    assert "Learning rates 0.003, 0.01 with each of the weight decays 0.2, 0, 300 on seed 1; " in said
    assert re.search(r"\| +parameters \| +lr \| +weight decay \|", said)
    # The first is that of the folder.
    assert run(text, tmp_path, *one[:-1], "0") == 2
    assert "weight_decay was 0.2 and is now 0.0: name another" in capsys.readouterr().err


def test_where_another_seed_diverges_at_the_best_rate_the_next_best_is_taken(
    text, tmp_path, here, unmeasured, capsys, monkeypatch
):
    train = cells.train

    def diverging(cell, worker, show):
        if (cell.point.learning_rate, cell.seed) == (diverges[0], 2):
            return CellResult(cell, Outcome("diverged", 1.0, "too far", 1))
        return train(cell, worker, show)

    flags = ("--models", "gla", "--lr", "1e-5,3e-3", "--grid_seeds", "1", "--seeds")
    assert run(text, tmp_path, *flags, "1") == 0
    losses = report_of(tmp_path)["models"][0]["mean_loss_by_learning_rate"]
    diverges = sorted(map(float, losses), key=lambda rate: losses[f"{rate:g}"])
    monkeypatch.setattr(cells, "train", diverging)
    counted(capsys)
    assert run(text, tmp_path, *flags, "1,2") == 0
    (row,) = report_of(tmp_path)["models"]
    assert row["learning_rate"] == diverges[1] and row["seeds"] == 2
    assert row["mean_loss_by_learning_rate"] == losses | {f"{diverges[0]:g}": None}
    assert [failure["status"] for failure in row["failures"]] == ["diverged"]
    assert counted(capsys) == [(1, 5), (2, 5), (3, 5), (4, 6)]  # one training more than was thought


def test_what_cannot_be_read_is_made_again(text, tmp_path, here, capsys):
    flags = ("--models", "gla")
    assert run(text, tmp_path, *flags) == 0
    report_before = without_times(report_of(tmp_path))
    cell = tmp_path / "cells/matched-gla/lr0.003-seed1"
    for name, commands in (
        ("metrics.json", ["train"]),
        ("measured.json", ["measure"]),
        ("run.json", ["train", "measure"]),
    ):
        here.clear()
        capsys.readouterr()
        (cell / name).write_text('{"loss": 1.')
        assert run(text, tmp_path, *flags) == 0
        assert [job[0] for job in here] == commands
        assert f"{name} cannot be read" in capsys.readouterr().err
        assert without_times(report_of(tmp_path)) == report_before
    assert sorted(path.name for path in cell.parent.iterdir() if path.is_dir()) == [
        cell.name,
        f"{cell.name}.unreadable-1",
    ]


def test_a_model_that_fails_is_reported_and_the_others_go_on(text, tmp_path, here, monkeypatch, capsys):
    builder = zoo.ARCHITECTURES["matched-gla"]

    def broken(*args):
        config = builder(*args)
        config.rule = ["no such rule"]  # found only when the model is built
        return config

    monkeypatch.setitem(zoo.ARCHITECTURES, "matched-gla", broken)
    monkeypatch.setattr("fla_mesa.train.overrides.apply", lambda config, text: config)
    flags = ("--models", "gla,delta_net")
    assert run(text, tmp_path, *flags) == 0
    gla, delta_net = report_of(tmp_path)["models"]
    assert (
        gla["seeds"] == 0
        and gla["failures"][0]["status"] == "failed"
        and "no such rule" in gla["failures"][0]["reason"]
    )
    assert delta_net["seeds"] == 1 and not delta_net["failures"]
    assert "FAILED" in capsys.readouterr().err
    assert "| gla       |          – |" in (tmp_path / "report.md").read_text()
    # What failed is tried again.
    monkeypatch.setitem(zoo.ARCHITECTURES, "matched-gla", builder)
    assert run(text, tmp_path, *flags) == 0
    assert report_of(tmp_path)["models"][0]["seeds"] == 1


SUITE = "mqar:vocab_size=64,length=32,num_pairs=2,train=32,validation=8,test=9"


def test_a_synthetic_suite_is_scored_on_its_test_split(tmp_path, here):
    flags = [flag for flag in SMALL if flag not in ("--seq_len", "32")]
    assert compare.main([*flags, "--suite", SUITE, "--models", "delta_net", "--output_dir", str(tmp_path)]) == 0
    (row,) = report_of(tmp_path)["models"]
    assert row["bits_per_byte"] is None and row["loss_by_position"] is None
    text = (tmp_path / "report.md").read_text()
    assert "test accuracy" in text and "- changed in the configurations: `" in text
    # By hand: the share of right answers among the scored positions, a sequence at a time.
    folder = tmp_path / "cells/matched-delta_net/lr0.003-seed1"
    model = Trained(folder, Metrics.read(folder), 512).model
    rows = synthetic.get(SUITE).dataset("test")
    shares = []
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        labels = torch.tensor(labels)[1:]
        guesses = model(torch.tensor([ids])).logits[0, :-1].argmax(-1)
        shares.append((guesses == labels)[labels >= 0].double().mean().item())
    assert row["test"]["accuracy"]["mean"] == pytest.approx(np.mean(shares))


def test_a_suite_of_several_tasks_ends_in_one_table(tmp_path, here, monkeypatch, capsys):
    other = SUITE.replace("num_pairs=2", "num_pairs=3")
    monkeypatch.setitem(flags_.SUITES, "pair", [SUITE, other])
    flags = [flag for flag in SMALL if flag not in ("--seq_len", "32")]
    flags += ["--suite", "pair", "--models", "delta_net,gla", "--seeds", "1,2", "--output_dir", str(tmp_path)]
    flags += ["--baseline", "delta_net"]
    assert compare.main(flags) == 0
    # Two steps teach nothing: scores that differ take the place of theirs.
    for i, path in enumerate(sorted(tmp_path.rglob("measured.json"))):
        path.write_text(json.dumps(read_json(path) | {"test": {"accuracy": i**3 % 11 / 11}}))
    assert compare.main(flags) == 0
    found = json.loads((tmp_path / "suite.json").read_text())
    tasks = [SUITE, other]
    assert found["columns"] == [*tasks, "average"] and [row["model"] for row in found["models"]] == ["delta_net", "gla"]
    of_models = []  # averages over the tasks, by model and seed
    for row in found["models"]:
        scores = [
            [
                read_json(path)["test"]["accuracy"]
                for path in sorted((tmp_path / task).glob(f"cells/*{row['model']}/*/measured.json"))
            ]
            for task in tasks
        ]
        of_seeds = np.mean(scores, axis=0)
        assert row["average"] == pytest.approx({"mean": of_seeds.mean(), "std": of_seeds.std(ddof=1)})
        of_models.append(of_seeds)
    pairs = of_models[1] - of_models[0]
    half = 12.7062 * pairs.std(ddof=1) / math.sqrt(2)
    base, against = (row["difference"] for row in found["models"])
    assert base is None and list(against) == [*tasks, "average"]
    assert against["average"] == pytest.approx({"mean": pairs.mean(), "half": half})
    sign = "+" if pairs.mean() > 0 else ""
    markdown = (tmp_path / "suite.md").read_text().partition("## Differences from delta_net")[2]
    assert f"| {sign}{pairs.mean():.4f} ± {half:.4f} |" in re.sub(" +", " ", markdown)
    for task in tasks:
        by_task = {row["model"]: row["test"]["accuracy"] for row in report_of(tmp_path / task)["models"]}
        assert {row["model"]: row[task] for row in found["models"]} == by_task
    table = (tmp_path / "suite.md").read_text()
    assert (
        "# Test accuracy by task" in table
        and "| average |" in re.sub(" +", " ", table)
        and f"({other}/report.md)" in table
    )
    assert f'<a href="{other}/report.html">' in (tmp_path / "suite.html").read_text()
    (data,) = re.findall(r"^- data: (.*)$", table, re.MULTILINE)
    assert [one.partition(", sha256 ")[0] for one in data.split("; ")] == tasks
    assert len(trainings(here)) == 8


def test_several_sizes_end_in_one_table_and_a_picture(tmp_path, here):
    flags = [
        "--parametrization",
        "matched",
        "--max_steps",
        "2",
        "--per_device_train_batch_size",
        "2",
        "--eval_strategy",
        "no",
    ]
    flags += ["--suite", SUITE, "--models", "delta_net,gla", "--seeds", "1,2", "--output_dir", str(tmp_path)]
    assert compare.main([*flags, "--size", "1x32,1x64"]) == 0
    found = json.loads((tmp_path / "suite.json").read_text())
    assert found["columns"] == ["1x32", "1x64"] and found["quality"] == "test accuracy"
    for size in found["columns"]:
        there = report_of(tmp_path / size)
        assert there["size"] == size and {row["model"]: row[size] for row in found["models"]} == {
            row["model"]: row["test"]["accuracy"] for row in there["models"]
        }
    widths = {json.loads(path.read_text())["hidden_size"] for path in (tmp_path / "1x64/cells").glob("*/*/config.json")}
    assert widths == {64}
    text = (tmp_path / "suite.md").read_text()
    assert "# Test accuracy by size" in text and "(1x32/report.md)" in text
    assert imread(tmp_path / f"{suite.PICTURE}.png").std() > 0
    # Another size later: what is there stays.
    assert compare.main([*flags, "--size", "1x64,1x32"]) == 0
    assert sum(job[0] == "train" for job in here) == 8


def test_overrides_of_one_model(text, tmp_path, here):
    shape = '{"hidden_size": 16, "num_hidden_layers": 1, "num_heads": 1, "head_dim": 16}'
    changes = json.dumps({"gla": json.loads(shape), "mesanet": json.loads(shape) | {"cg_tolerance": 0.25}})
    flags = ("--config_overrides", changes, "--num_train_epochs", "1")
    assert run(text, tmp_path, "--models", "mesanet,delta_net", *flags) == 0
    assert run(text, tmp_path, "--models", "gla", *flags) == 0  # joins later, under the same overrides
    found = {}
    for model in ("mesanet", "delta_net", "gla"):
        (config,) = (tmp_path / f"cells/matched-{model}").glob("*/config.json")
        found[model] = json.loads(config.read_text())
    assert [config["hidden_size"] for config in found.values()] == [16, 128, 16]
    assert found["mesanet"]["cg_tolerance"] == 0.25
    assert f"- changed in the configurations: `{changes}`" in (tmp_path / "report.md").read_text()


def test_tasks_and_sizes_have_a_folder_each(tmp_path):
    made = parse(["--suite", "mad", "--size", "2x64,2x128", "--output_dir", str(tmp_path)])
    assert len(made) == 12 and len({plan.folder for plan in made}) == 12
    assert made[1].folder == tmp_path / "mad-in-context-recall" / "2x128"
    some = (
        "mad-fuzzy-in-context-recall,mqar:length=64,num_pairs=4,mqar:length=32,num_pairs=2,mad-fuzzy-in-context-recall"
    )
    of_each = [plan.settings.data for plan in parse(["--suite", some, "--size", "2x64"])]
    assert of_each == ["mad-fuzzy-in-context-recall", "mqar:length=64,num_pairs=4", "mqar:length=32,num_pairs=2"]
    (plan,) = parse(["--suite", "mqar", "--size", "2x64"])
    assert str(plan.folder) == "runs/compare-2x64"
    assert str(parse(["--size", "2x64,2x128"])[1].folder) == "runs/compare-2x64-2x128/2x128"


def test_all_models_see_the_same_tokens_in_the_same_order(text, tmp_path):
    orders = []
    for name in ("mesanet", "mamba2"):
        flags = [
            "--model",
            name,
            "--data",
            str(text),
            "--seq_len",
            "32",
            "--seed",
            "7",
            "--output_dir",
            str(tmp_path / name),
        ]
        run = prepare(*parse_training(flags), say=lambda _: None)
        orders.append(torch.stack([batch["input_ids"] for batch in islice(run.trainer.get_train_dataloader(), 5)]))
    assert torch.equal(*orders)


def test_loss_by_position_is_that_of_the_blocks(text, tmp_path, here):
    assert run(text, tmp_path, "--models", "delta_net", "--position_tokens", "1000000000") == 0
    run_ = Trained(tmp_path / "cells/matched-delta_net/lr0.003-seed1", metrics_of(tmp_path, "delta_net"), 10**9)
    ids, labels = run_.validation(times=4)
    assert (
        ids.shape[1] == 128 and labels[-1, -1] == -100
    )  # the last block is not whole, and what fills it up does not count
    nats = []
    with torch.no_grad():
        for row, label in zip(ids, labels, strict=True):
            log_p = run_.model(row[None]).logits[0, :-1].log_softmax(-1)
            at = -log_p[torch.arange(127), label[1:].clamp(min=0)]
            nats.append(at.masked_fill(label[1:] < 0, torch.nan))
    (row,) = report_of(tmp_path)["models"]
    np.testing.assert_allclose(row["loss_by_position"], torch.stack(nats).nanmean(0), rtol=1e-4)
    np.testing.assert_allclose(row["loss_in_ranges"]["32-63"]["mean"], np.mean(row["loss_by_position"][31:63]))


def test_loss_by_position_ends_where_the_text_does(text, tmp_path, here):
    """The validation text fills less than one block of 128 times the training length."""
    flags = ("--models", "delta_net,gla", "--baseline", "gla", "--extrapolation", "128")
    assert run(text, tmp_path, *flags) == 0
    run_ = Trained(tmp_path / "cells/matched-gla/lr0.003-seed1", metrics_of(tmp_path, "gla"), 10**9)
    (_, labels) = run_.validation(times=128)
    last = int((labels >= 0).sum()) - 1
    assert labels.shape == (1, 4096) and 512 < last < 4095
    for row in report_of(tmp_path)["models"]:
        assert len(row["loss_by_position"]) == last and min(row["loss_by_position"]) > 0
        first, *_, final = row["loss_in_ranges"]
        assert first == "1-15" and final.endswith(f"-{last}")


# The children themselves


class Program:
    """Source code that takes the place of a training."""

    def __init__(self, source: str):
        self.source = source

    def __call__(self):
        exec(self.source, {})
        return 0


@pytest.fixture
def program(monkeypatch):
    """Makes all trainings run a piece of source code."""

    def use(source: str) -> None:
        monkeypatch.setattr(attempt, "Training", lambda values: Program(source))

    return use


def plan_of(tmp_path, *flags):
    (plan,) = parse(["--models", "gla", "--output_dir", str(tmp_path / "out"), *flags])
    return plan


def cell_of(plan) -> Cell:
    return Cell(plan, plan.variants[0], plan.grid[0], plan.seeds[0])


def outcome_of(plan, show=lambda share, what: None):
    return cells.train(cell_of(plan), Worker(), show).outcome


def test_a_killed_child_is_named_and_its_cell_goes_on(tmp_path, program):
    program("import os; os.kill(os.getpid(), 9)")
    plan = plan_of(tmp_path)
    outcome = outcome_of(plan)
    assert outcome.status == "failed" and outcome.reason.startswith("killed by SIGKILL, perhaps because memory ran out")
    assert cells.stored(cell_of(plan)) is None  # to be run again


def test_the_progress_of_a_child_is_seen(tmp_path, program):
    seen, plan = [], plan_of(tmp_path)
    program(tells(cell_of(plan), 'Status("training", 5, 10, 2.5)') + "; import time; time.sleep(1.2)")
    outcome_of(plan, lambda share, what: seen.append((share, what)))
    assert (0.5, "step 5/10 loss 2.5000") in seen


def tells(cell, status: str) -> str:
    """Source code that writes the status of a cell's run, as a training does."""
    return (
        f"from pathlib import Path; folder = Path({str(cell.folder)!r}); folder.mkdir(parents=True); "
        f"from fla_mesa.train.status import Status, write_status; write_status(folder, {status})"
    )


def test_only_a_training_s_own_status_says_that_it_diverged(tmp_path, program):
    plan = plan_of(tmp_path)
    program(
        "import sys; print('the loss was no longer a finite number at step 3: try a lower --learning_rate'); sys.exit(1)"
    )
    assert outcome_of(plan).status == "failed"
    program(tells(cell_of(plan), 'Status("diverged", 7, 10)') + "; import sys; sys.exit(1)")
    outcome = outcome_of(plan)
    assert (outcome.status, outcome.step) == ("diverged", 7)
    program("import sys; sys.exit(2)")  # what an earlier call left is not taken for its own
    assert outcome_of(plan).status == "failed"


def test_a_full_disk_ends_the_comparison_and_says_so(tmp_path, program, capsys):
    program(f"raise RuntimeError('cannot write') from OSError({errno.ENOSPC}, {os.strerror(errno.ENOSPC)!r})")
    assert compare.main(["--models", "gla", "--output_dir", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert "no space left on the disk" in err and "finished runs are kept" in err


def test_stopping_stops_the_child_and_waits_for_it(tmp_path, program, monkeypatch, capsys):
    mark, cell = tmp_path / "ended", cell_of(plan_of(tmp_path))
    begun = tells(cell, 'Status("training", 1, 2, 1.0)')
    program(
        "import pathlib, signal, sys, time\n"
        f"def end(*_): time.sleep(0.3); pathlib.Path({str(mark)!r}).touch(); sys.exit(143)\n"
        f"signal.signal(signal.SIGTERM, end); {begun}; time.sleep(60)"
    )

    def interrupt(share, what):
        raise Interrupted(2)

    monkeypatch.setattr(_Runner, "_show", lambda self, kind, cell: interrupt)
    begin = time.perf_counter()
    assert compare.main(["--models", "gla", "--output_dir", str(tmp_path / "out")]) == 130
    assert mark.exists() and time.perf_counter() - begin < 50
    assert "run the same command to continue" in capsys.readouterr().err


def test_a_child_that_outlives_its_comparison_keeps_the_folder(tmp_path):
    """Its parent is killed; the child notes its own number, so that it can be ended."""
    plan, number = plan_of(tmp_path), tmp_path / "number"
    folders.open_folder(plan)
    source = f"import os, pathlib, time; pathlib.Path({str(number)!r}).write_text(str(os.getpid())); time.sleep(60)"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from tests.eval.test_compare import *\n"
            f"(plan,) = parse(['--models', 'gla', '--output_dir', {str(plan.folder)!r}])\n"
            "lock = folders.lock(plan)\n"
            f"Worker(lock.fileno()).run(Program({source!r}), plan.folder / 'log')",
        ]
    )
    while not number.exists() or not number.read_text():
        assert parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    try:
        with pytest.raises(ValueError, match="another process is at work in"):
            folders.lock(plan)
    finally:
        os.kill(int(number.read_text()), 9)
    for _ in range(100):
        with contextlib.suppress(ValueError):
            folders.lock(plan).close()
            return
        time.sleep(0.1)
    pytest.fail("the folder was not free after the child's end")


def test_a_real_child(tmp_path):
    code, seconds = Worker().run(functools.partial(cli.main, ["--version"]), tmp_path / "log")
    assert code == 0 and (tmp_path / "log").read_text().startswith("fla-mesa ") and seconds > 0


# Settings and reports


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--preset", "quick"],
            f"preset: allowed are {', '.join(PRESETS)}; got 'quick'",
        ),
        (["--models", "gla,rwkv"], "unknown model 'rwkv'; available with released parametrization: mesanet, "),
        (["--models", "kda", "--parametrization", "matched"], "unknown model 'kda'; available with matched"),
        (["--models", ","], "models: expected a comma-separated list"),
        (["--parametrization", "fair"], "parametrization must be one of released, matched; got 'fair'"),
        (["--size", "tiny,2x63"], "unknown size '2x63'; available: tiny, small"),
        (["--size", ","], "size: expected a comma-separated list"),
        (["--size", "huge"], "unknown size 'huge'; available: tiny, small"),
        (["--lr", "fast"], "lr: allowed are numbers > 0, such as 1e-3,3e-3; got 'fast'"),
        (["--lr", "nan"], "lr: allowed are numbers > 0"),
        (["--lr", "1e-3,0.001"], "lr: each value once"),
        (["--seeds", "1,x"], "seeds: allowed are integers >= 0; got 'x'"),
        (["--seeds", "1,2", "--grid_seeds", "0"], "grid_seeds: allowed are integers >= 1; got '0'"),
        (["--seeds", "1,2", "--grid_seeds", "some"], "grid_seeds: allowed are integers >= 1; got 'some'"),
        (["--seeds", "1,2", "--grid_seeds", "3"], "grid_seeds: allowed are 1 to 2, as many as --seeds names; got 3"),
        (["--seed", "3"], "seed: a comparison sets it for each of its runs; use --seeds"),
        (["--learning-rate", "3"], "learning_rate: a comparison sets it for each of its runs; use --lr"),
        (["--weight-decay", "0.1,much"], "weight_decay: allowed are numbers >= 0, such as 0,0.1; got 'much'"),
        (["--learning_rate=3"], "learning_rate: a comparison sets it for each of its runs; use --lr"),
        (["--position_tokens", "0"], "position_tokens: allowed are integers >= 1"),
        (["--config_overrides", "nonsense=1"], "config_overrides: "),
        (["--lr_scheduler_type", "warmup_stable_decay"], "lr_scheduler_type: warmup_stable_decay cannot be made"),
        (["--optim", "galore_adamw", "--optim_target_modules", "nothing"], "optim: galore_adamw cannot be used here"),
        (["--models", "gla", "--config_overrides", '{"mesanet": {"gamma_int": 1}}'], "did you mean gamma_init?"),
        (
            ["--models", "gla", "--config_overrides", "gla=1"],
            "config_overrides: gla is an architecture, and takes an object of its settings; got 1",
        ),
        (["--weight_decay", "-0.1"], "weight_decay: allowed are numbers >= 0, such as 0,0.1; got '-0.1'"),
        (["--weight_decay", "0.1,much"], "weight_decay: allowed are numbers >= 0, such as 0,0.1; got 'much'"),
        (["--weight_decay", "0.1,0.10"], "weight_decay: each value once; got 0.1,0.10"),
        (["--adam_beta2", "7"], "adam_beta2"),
        (["--data", "nowhere.txt"], "nowhere.txt"),
        (["--data", "mqar", "--seq_len", "32"], "seq_len: does not apply to --data mqar"),
        (
            ["--suite", "glue"],
            "suite: allowed are text, mqar, mad, regbench, regression, or a synthetic task; unknown synthetic suite 'glue'",
        ),
        (
            ["--suite", "mqar:pairs=3"],
            "suite: allowed are text, mqar, mad, regbench, regression, or a synthetic task; mqar: unknown setting 'pairs'",
        ),
        (["--suite", "mad,regression"], "suite: text, regression and the other tasks have different scores"),
        (["--suite", "mqar,"], "unknown synthetic suite ''"),
        (["--suite", "mad", "--data", "stdlib"], "suite, data: each says what to learn"),
        (["--models", "mesanet@max_cg=5"], "config_overrides: mesanet has no setting 'max_cg'"),
        (["--models", "gla", "--baseline", "mesanet"], "baseline: allowed are the models compared, gla; got 'mesanet'"),
        (["--extrapolation", "0"], "extrapolation: allowed are integers >= 1; got '0'"),
        (["--models", "hawk_mesa", "--size", "1x32"], "models: hawk_mesa: rule must name 1 to 1 rules"),
        (["--models", "mesanet@5"], "models: expected NAME@setting=value@setting=value; got 'mesanet@5'"),
        (["--overwrite"], "overwrite: a comparison sets it for each of its runs; use another --output_dir"),
    ],
)
def test_bad_settings_are_found_before_anything_is_trained(flags, message, tmp_path, capsys):
    assert compare.main(["--output_dir", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    assert compare.main(["--output_dir", str(tmp_path)]) == 2
    assert "holds files that are no comparison" in capsys.readouterr().err


def test_presets_are_overridden_by_flags():
    (plan,) = parse(["--preset", "demo", "--lr", "1e-3", "--max_steps", "7"])
    assert [v.label for v in plan.variants] == read_preset("demo")["models"].split(",")
    assert plan.learning_rates == (1e-3,) and plan.training["max_steps"] == plan.fixed["max_steps"] == 7
    assert plan.baseline == "mesanet"
    assert [plan.size for plan in parse(["--preset", "mqar"])] == ["2x32", "2x64", "2x128"]
    (plan,) = parse(["--preset", "paper-text-940M", "--data", "stdlib"])
    assert plan.settings.data_config is None  # that of the preset's data
    (plan,) = parse(["--preset", "demo", "--models", "gla,delta_net"])
    assert plan.baseline is None  # a preset's is no model of this comparison
    (plan,) = parse(["--preset", "demo", "--parametrization", "released"])  # whose layers start their gates themselves
    assert str(plan.folder) == "runs/demo-released" and plan.settings.config_overrides is None
    (plan,) = parse(
        ["--preset", "demo", "--parametrization", "released", "--config_overrides", '{"gla": {"expand_v": 2}}']
    )
    assert plan.variants[3].overrides == '{"expand_v": 2}' and plan.variants[0].overrides == "{}"
    (plan,) = parse(["--preset", "mqar", "--data", "stdlib", "--size", "tiny"])
    assert (plan.size, plan.settings.data, str(plan.folder)) == ("tiny", "stdlib", "runs/mqar")


SIX = "mesanet,gated_deltanet,delta_net,gla,mamba2,transformer"
NINE = "mesanet,gated_deltanet,delta_net,gla,mamba2,xlstm,hawk,hawk_mesa,transformer"  # of the paper's tables 8 and 9
TEN = NINE.replace("transformer", "gka,transformer")
STEPS = ",".join(["mesanet", *(f"mesanet@max_cg_step_training={steps}" for steps in (1, 2, 5, 10, 50))])
WINDOWS = ",".join(["transformer", *(f"swa@window_size={size}" for size in (4, 16, 64, 256, 1024)), "mesanet"])
PAPER = ((3e-3, 2.5e-3, 2e-3, 1.5e-3, 1e-3), (0.1,))  # its table 8, 15 billion tokens
# What each preset is: models; sizes; rates and weight decays; seeds, and how many of them run the grid; steps, sequences of a step, and
# tokens of a run on each task, in millions; runs in all.
IS = {
    "cg-steps": (STEPS, "tiny", ((3e-3,), (0.1,)), (3, 3), (1000, 4, [2.05]), 18),
    "demo": (SIX, "tiny", ((3e-3,), (0.1,)), (1, 1), (220, 4, [0.23]), 6),
    "mad": (
        NINE, "2x128", ((3e-3, 1e-3, 5e-4, 1e-4), (0.1, 0.01)), (1, 1), (2000, 32, [8.19, 8.19, 8.19, 2.11, 4.03, 16.45]), 432,
    ),
    "mqar": (f"{SIX},transformer_conv", "2x32,2x64,2x128", ((3e-3, 1e-2), (0.1,)), (1, 1), (1500, 32, [3.07]), 42),
    "paper-text": (TEN, "tiny", ((1e-3, 3e-3, 1e-2), (0.1,)), (3, 1), (1000, 4, [2.05]), 50),
    "paper-text-140M": (TEN, "140M", PAPER, (1, 1), (28610, 256, [14999.88]), 50),
    "paper-text-440M": (TEN, "440M", PAPER, (1, 1), (28610, 256, [14999.88]), 50),
    "paper-text-940M": (TEN, "940M", PAPER, (1, 1), (28610, 256, [14999.88]), 50),
    "regbench": (NINE, "2x256", ((1e-4, 2.5e-4, 1e-3), (0.1, 0.01)), (1, 1), (2000, 32, [60.74]), 54),
    "regression": (SIX, "2x64", ((1e-3, 3e-3), (0.1,)), (1, 1), (2000, 64, [8.19, 8.19]), 24),
    "swa": (WINDOWS, "tiny", ((3e-3,), (0.1,)), (1, 1), (500, 2, [2.05]), 7),
}  # fmt: skip


def columns_of(plan) -> int:
    """Tokens of a training sequence."""
    source = plan.settings.data
    if source.partition(":")[0] == regression.NAME:
        return regression.Regression.parse(source).length
    is_text = source == "stdlib" or plan.settings.streaming
    return plan.settings.seq_len or TEXT_SEQ_LEN if is_text else synthetic.get(source).max_length


@pytest.mark.parametrize("name", PRESETS)
def test_what_every_preset_is(name):
    models, sizes, (rates, decays), (seeds, of_grid), (steps, rows, tokens), runs = IS[name]
    plans, of_tasks = parse(["--preset", name]), {}
    for plan in plans:
        assert ",".join(variant.label for variant in plan.variants) == models and plan.parametrization == "matched"
        assert (plan.learning_rates, plan.weight_decays) == (rates, decays)
        assert (plan.seeds, len(plan.grid_seeds)) == (tuple(range(1, seeds + 1)), of_grid)
        assert plan.baseline == ("transformer" if name == "swa" else "mesanet")
        _, arguments = build(plan.training)
        assert (arguments.max_steps, arguments.sequences_per_step) == (steps, rows)
        of_tasks[plan.settings.data] = round(steps * rows * columns_of(plan) / 1e6, 2)
        warm_up, ends = 2000 if "M" in name else 0.05, {"mad": 1e-5, "regbench": 2.5e-5}
        schedule = {"min_lr": ends[name]} if name in ends else {"min_lr_rate": 0.1}
        assert arguments.warmup_steps == warm_up and arguments.lr_scheduler_kwargs == schedule
        assert (arguments.adam_beta1, arguments.adam_beta2) == (0.9, 0.99 if name == "regbench" else 0.98)
        # Every gate that can start elsewhere starts over the heads; heads are of the paper's size.
        for variant in plan.variants:
            changes = json.loads(variant.overrides)
            has_gate = variant.architecture not in ("delta_net", "hawk", "transformer", "transformer_conv", "swa")
            assert changes.get("gamma_init") == ([0.5, 0.98] if has_gate else None)
            heads = {"mad": (8, 16), "regbench": (2, 128)}.get(name, (None, None))
            assert (changes.get("num_heads"), changes.get("head_dim")) == heads
    assert [plan.size for plan in plans] == sizes.split(",") * len(of_tasks) and list(of_tasks.values()) == tokens
    assert sum(len(plan.variants) * (len(plan.grid) * of_grid + seeds - of_grid) for plan in plans) == runs
    # What the documentation says of it.
    table = (Path(__file__).parents[2] / "docs/comparing.md").read_text()
    (row,) = (line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
    assert [cell.strip() for cell in row.split("|")][3:-1] == [f"{runs}", f"{steps:,}", millions(tokens)]


def millions(tokens: list[float]) -> str:
    """As the documentation writes tokens: of one task, or of the least and the most."""
    if tokens[0] > 1000:
        return f"{tokens[0] / 1000:.0f} billion"
    least, most = f"{min(tokens):.1f}", f"{max(tokens):.1f}"
    return f"{least if least == most else f'{least} to {most}'} million"


@pytest.mark.parametrize("size", ["140M", "440M", "940M"])
def test_the_paper_s_text_presets_are_the_paper_s_training(size):
    """Appendix G of arXiv 2506.05233."""
    (plan,) = parse(["--preset", f"paper-text-{size}"])
    settings, arguments = build(plan.training)
    assert (settings.seq_len, settings.tokenizer, settings.streaming) == (2048, "gpt2", True)
    assert 15e9 - 2e5 < arguments.max_steps * arguments.sequences_per_step * settings.seq_len <= 15e9
    assert (arguments.weight_decay, arguments.adam_epsilon, arguments.max_grad_norm) == (0.1, 1e-8, 1.0)
    assert plan.fixed["extrapolation"] == 16  # 32,768 tokens
    shape = zoo.shape(size)
    assert (shape.num_hidden_layers, shape.hidden_size, shape.num_heads, shape.head_dim) == {
        "140M": (14, 768, 6, 128),
        "440M": (28, 1024, 8, 128),
        "940M": (28, 1536, 12, 128),
    }[size]


@pytest.mark.parametrize("name", ["mad", "paper-text", "regbench"])
def test_the_models_of_a_preset_have_as_many_parameters(name):
    plan = parse(["--preset", name])[0]
    counts = {
        variant.label: zoo.count_parameters(
            make_config(replace(plan.settings, model=variant.zoo_name, config_overrides=variant.overrides), None)
        )
        for variant in plan.variants
    }
    least, most = min(counts.values()), max(counts.values())
    assert most <= (1 + zoo.TOLERANCE) * least, counts


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs(name, text, tmp_path, here):
    flags = read_preset(name)
    assert not flags.keys() - vars(flags_.parser().parse_args([])).keys()
    assert all(str(plan.folder).startswith(f"runs/{name}") for plan in parse(["--preset", name]))
    # The same with its first and last model, small and short; of the windows the shortest, too.
    models = split_outside_brackets(flags["models"], ",")
    models = [models[0], *(["swa@window_size=4"] if name == "swa" else []), models[-1]]
    short = ["--models", ",".join(models), "--size", "2x32", "--seeds", "1", "--lr", "3e-3"]
    short += ["--weight_decay", "0.1", "--max_steps", "2", "--per_device_train_batch_size", "2"]
    short += ["--eval_strategy", "no", "--position_tokens", "512"]
    suite_ = flags.get("suite", "").partition(":")[0]
    suite_ = f"{'mad-compression' if suite_ == 'mad' else suite_}:train=8,validation=4,test=4"
    suite_ += ",drift=0.02" if name == "regression" else ""
    if "suite" in flags:
        short += ["--suite", suite_ + (",length=32,num_pairs=2" if name == "mqar" else "")]
    else:
        short += ["--seq_len", "32", "--final_eval_tokens", "512"]
    if "streaming" in flags:
        rows, tokenizer = tmp_path / "rows.jsonl", tmp_path / "tokenizer"
        rows.write_text("".join(json.dumps({"text": line}) + "\n" for line in text.read_text().splitlines()))
        byte_tokenizer().save_pretrained(tokenizer)
        short += ["--data", str(rows), "--held_out_tokens", "1024", "--tokenizer", str(tokenizer)]
        short += ["--gradient_accumulation_steps", "1"]
    elif "suite" not in flags:
        short += ["--data", str(text)]
    assert compare.main(["--preset", name, *short, "--output_dir", str(tmp_path / "out")]) == 0
    rows = report_of(tmp_path / "out")["models"]
    assert [row["model"] for row in rows] == models and all(row["seeds"] == 1 for row in rows)


def test_differences_are_taken_over_pairs_of_runs(text, tmp_path, here):
    flags = ("--models", "delta_net,gla", "--seeds", "1,2", "--baseline", "gla", "--extrapolation", "2")
    assert run(text, tmp_path, *flags) == 0
    found = report_of(tmp_path)
    losses = {model: [metrics_of(tmp_path, model, seed).loss for seed in (1, 2)] for model in ("delta_net", "gla")}
    pairs = np.subtract(losses["delta_net"], losses["gla"])
    difference = found["models"][0]["difference"]["loss"]
    assert difference["mean"] == pytest.approx(pairs.mean())
    assert difference["half"] == pytest.approx(12.7062 * pairs.std(ddof=1) / np.sqrt(2), rel=1e-4)
    assert found["models"][1]["difference"] is None and found["baseline"] == "gla"
    assert len(found["models"][0]["loss_by_position"]) == 2 * 32 - 1
    assert "## Differences from gla" in (tmp_path / "report.md").read_text()
    assert imread(tmp_path / "loss_difference.png").std() > 0.05

    # Its two panels: windows of positions, here the last from 45 on, and the mean of all up to a position.
    curves = {
        model: np.array(
            [
                read_json(tmp_path / f"cells/matched-{model}/lr0.003-seed{seed}/measured.json")["loss_by_position"]
                for seed in (1, 2)
            ]
        )
        for model in ("delta_net", "gla")
    }
    apart = curves["delta_net"] - curves["gla"]
    (picture,) = (
        block
        for section in found["sections"]
        for block in section["blocks"]
        if isinstance(block, dict) and block.get("name") == "loss_difference"
    )
    for panel, of_seeds in zip(picture["panels"], (apart[:, 44:], apart), strict=True):
        line, pairs = panel["lines"]["delta_net"], of_seeds.mean(1)
        assert line["y"][-1] == pytest.approx(pairs.mean(), rel=1e-6)
        assert line["half"][-1] == pytest.approx(12.7062 * pairs.std(ddof=1) / np.sqrt(2), rel=1e-4)


def test_pairs_are_those_of_a_seed():
    """Runs that could not be measured leave gaps, of other seeds in other models."""
    assert Difference.of({2: 0.9, 3: 1.0}, {1: 0.3, 3: 1.0}) == Difference(0.0, None)
    assert Difference.of({1: 0.9}, {2: 0.3}) is None
    difference = Difference.of({3: 1.5, 1: 1.0, 2: 7.0}, {1: 0.5, 3: 0.5})
    assert difference.mean == pytest.approx(0.75) and difference.half == pytest.approx(12.7062 * 0.25)


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (9, 2.2622), (11, 2.2010), (20, 2.0860), (60, 2.0003)])
def test_the_quantiles_are_those_of_students_t(freedom, quantile):
    assert t_quantile(freedom) == pytest.approx(quantile, abs=2e-4)


PLUGIN = """
from fla.models import LinearAttentionConfig
from fla_mesa.eval.compare.columns import MORE, column, digits
from fla_mesa.json_files import read_json
from fla_mesa.models import zoo

@column("embedding's norm", digits(1), better=MORE)
def norm_of_embedding(run):
    return run.model.get_input_embeddings().weight.norm().item()

@zoo.register("linear_attn_here")
def build(shape, tokens):
    return LinearAttentionConfig(num_heads=shape.num_heads, **zoo.common(shape, tokens))
"""


def test_a_plug_in_adds_a_column_and_an_architecture(text, tmp_path, here, monkeypatch):
    (tmp_path / "mine.py").write_text(PLUGIN)
    flags = ["compare", "--plugin", str(tmp_path / "mine.py"), "--models", "linear_attn_here,gla", "--size", "1x32"]
    flags += [
        "--data",
        str(text),
        "--seq_len",
        "32",
        "--max_steps",
        "2",
        "--position_tokens",
        "512",
        "--eval_strategy",
        "no",
    ]
    try:
        assert cli.main([*flags, "--output_dir", str(tmp_path / "out")]) == 0
    finally:
        columns.COLUMNS.pop("norm_of_embedding", None)
    rows = report_of(tmp_path / "out")["models"]
    assert [row["model"] for row in rows] == ["linear_attn_here", "gla"]
    report_ = (tmp_path / "out/report.md").read_text()
    assert "embedding's norm |" in report_ and all(f"{row['norm_of_embedding']['mean']:.1f}" in report_ for row in rows)


def test_the_command_that_a_run_records_is_that_of_its_settings(tmp_path):
    plan = plan_of(tmp_path, "--config_overrides", "num_hidden_layers=2", "--max_steps", "5", "--bf16", "true")
    settings, arguments = parse_training(words(plan.training))
    assert settings == build(plan.training)[0]
    assert arguments.to_dict() == build(plan.training)[1].to_dict()


def test_a_run_that_was_trained_by_its_own_command_is_taken_up(text, tmp_path, here, unmeasured, capsys):
    """As torchrun would train it on several GPUs: its log begins with the command."""
    flags = ("--models", "delta_net", "--gradient_accumulation_steps", "2")
    assert run(text, tmp_path, *flags) == 0
    cell = tmp_path / "cells/matched-delta_net/lr0.003-seed1"
    before = metrics_of(tmp_path, "delta_net")
    program, name, *line = shlex.split(cell.with_name(f"{cell.name}.train.log").read_text().splitlines()[0])
    assert (program, name) == ("fla-mesa", "train") and line[line.index("--gradient_accumulation_steps") + 1] == "2"
    shutil.rmtree(cell)
    here.clear()
    # Twice the sequences in half the parts: the same step, as on two processes.
    assert train_command.main([*line, "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"]) == 0
    assert run(text, tmp_path, *flags) == 0 and not trainings(here)
    assert metrics_of(tmp_path, "delta_net").loss == pytest.approx(before.loss, rel=1e-5)
    # Other batches would not compare.
    shutil.rmtree(cell)
    assert train_command.main([*line, "--per_device_train_batch_size", "4"]) == 0
    capsys.readouterr()
    assert run(text, tmp_path, *flags) == 2
    assert "took 8 sequences a step, and this comparison takes 4: remove it, or" in capsys.readouterr().err


def test_variants_are_rows_of_their_own(text, tmp_path, here):
    models = "mesanet,mesanet@max_cg_step_training=2@gamma_init=[0.5, 0.98],transformer"
    assert run(text, tmp_path, "--models", models) == 0
    found = report_of(tmp_path)["models"]
    labels = ["mesanet", "mesanet@max_cg_step_training=2@gamma_init=[0.5, 0.98]", "transformer"]
    assert [row["model"] for row in found] == labels
    (config,) = (tmp_path / f"cells/matched-{labels[1]}").glob("*/config.json")
    config = json.loads(config.read_text())
    assert config["max_cg_step_training"] == 2 and config["gamma_init"] == [0.5, 0.98] and config["hidden_size"] == 32
    assert found[0]["loss"] != found[1]["loss"]
    # What solving is worth is said of models that solve.
    mesanet, fewer, transformer = found
    assert mesanet["iterations"]["mean"] > 1.5 and fewer["iterations"]["mean"] <= 2
    assert mesanet["not_converged"]["mean"] == 0 < fewer["not_converged"]["mean"]
    assert abs(mesanet["loss_solved_exactly"]["mean"]) < 1e-4 and mesanet["loss_without_steps"]["mean"] != 0
    assert abs(fewer["loss_with_30_steps"]["mean"] - fewer["loss_solved_exactly"]["mean"]) < 1e-4
    assert transformer["iterations"] is transformer["loss_without_steps"] is None
    assert "## Solver" in (tmp_path / "report.md").read_text()


def test_what_is_reported_later_is_measured_later(text, tmp_path, here):
    """A finished run lacks a column that came later: that one is measured, nothing else."""
    assert run(text, tmp_path, "--models", "gla") == 0
    cell = tmp_path / "cells/matched-gla/lr0.003-seed1"
    measured = json.loads((cell / "measured.json").read_text())
    before = report_of(tmp_path)["models"][0]
    del measured["state_bytes"]
    # As 0.1.0 wrote it.
    (cell / "measured.json").write_text(json.dumps(measured | {"blocks": 3}))
    here.clear()
    assert run(text, tmp_path, "--models", "gla") == 0
    assert here == [("measure", "state_bytes")]
    assert report_of(tmp_path)["models"][0] == before


def test_a_setting_that_came_later_was_at_its_default(text, tmp_path, here, capsys):
    assert run(text, tmp_path, "--models", "gla") == 0
    stored = json.loads((tmp_path / "compare.json").read_text())
    del stored["weight_decay"]
    (tmp_path / "compare.json").write_text(json.dumps(stored))
    assert run(text, tmp_path, "--models", "gla", "--weight_decay", "0.2") == 2
    assert "weight_decay was 0.1 and is now 0.2: name another" in capsys.readouterr().err
    assert run(text, tmp_path, "--models", "gla") == 0


def row_of(label, figures):
    return ModelResult(Variant(label, label, label, None), (), figures, {}, ())


def test_the_best_of_a_column_is_bold():
    columns = [
        tables.Column("bits per byte", lambda model: model.spread("bits_per_byte"), digits(2), "less"),
        tables.Column("speed", lambda model: model.spread("speed"), whole, MORE),
    ]
    rows = [
        row_of("gla", {"bits_per_byte": {"": Spread(2.5, 0.01)}, "speed": {"": Spread(3000.0)}}),
        row_of("mesanet", {"bits_per_byte": {"": Spread(2.25, 0.01)}, "speed": {"": Spread(2000.0)}}),
        row_of("mamba2", {}),
    ]
    assert tables.Table.of(rows, columns).markdown().splitlines() == [
        "| model   |   bits per byte |     speed |",
        "| ------- | --------------: | --------: |",
        "| gla     |     2.50 ± 0.01 | **3,000** |",
        "| mesanet | **2.25 ± 0.01** |     2,000 |",
        "| mamba2  |               – |         – |",
    ]


def test_bars_move_on_a_terminal_and_lines_stay_everywhere():
    shown = {}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
        with Display(console) as display:
            display.move(3, 12, "about 3:20 left", "gla lr 0.003 seed 1", 0.5, "step 5/10 loss 2.5")
            display.line("[3/12] done")
        shown[terminal] = console.file.getvalue()
    assert shown[False] == "[3/12] done\n"
    for text in ("about 3:20 left", "gla lr 0.003 seed 1", "step 5/10 loss 2.5", "29%", "50%", "[3/12] done"):
        assert text in shown[True]


def test_time_left_goes_by_what_has_been_done(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    estimate = Estimate(trainings=3, measurements=3)
    estimate.start()
    assert estimate.left("train") == ""
    now[0] = 30.0
    assert estimate.left("train", 0.5) == "about 3:24 left"  # 60 s each, measurements guessed at 18 s
    now[0] = 60.0
    estimate.finish("train", ran=True)
    assert estimate.left() == "about 2:54 left" and estimate.done == 1
    estimate.start()
    now[0] = 70.0
    estimate.finish("measure", ran=True)
    assert estimate.left() == "about 2:20 left"


def test_what_is_stored_takes_no_time(tmp_path, monkeypatch):
    plan = plan_of(tmp_path, "--models", "gla,mamba2", "--lr", "1e-3,3e-3", "--seeds", "1,2,3", "--grid_seeds", "1")
    for variant, name in ((0, "lr0.001-seed1"), (0, "lr0.003-seed1"), (0, "lr0.003-seed2"), (1, "lr0.001-seed1")):
        folder = plan.folder / "cells" / plan.variants[variant].folder_name / name
        folder.mkdir(parents=True)
        (folder / "metrics.json").touch()
        if name == "lr0.003-seed2":
            (folder / "measured.json").touch()
    stored = _stored(plan)
    assert stored == {"train": 4, "measure": 1}
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    estimate = Estimate(trainings=8, measurements=6, stored=stored)
    for ran in (False, False, False, True):
        estimate.start()
        now[0] += 100.0 * ran
        estimate.finish("train", ran=ran)
    # Of 4 trainings left one is stored, as is one measurement of 6: 3 of 100 s, 5 of 30 s.
    assert estimate.done == 4 and estimate.left() == "about 7:30 left"


def test_every_model_has_a_look_of_its_own():
    labels = [*dict.fromkeys([*zoo.names("released"), *zoo.names("matched")]), "mesanet@cg_tolerance=0.1"]
    looks = [(look.color, look.marker, look.linestyle) for look in pictures.looks(labels).values()]
    assert len(set(looks)) == len(labels)
