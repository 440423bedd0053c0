"""`--shard` on two gloo processes: the figures of one, checkpoints in pieces, and nothing lost when a process dies."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fla_mesa import cli
from fla_mesa.testing.ranks import run_on_ranks
from fla_mesa.train import run_folder, sharding
from fla_mesa.train.command import main
from fla_mesa.train.decay import exempt_parameters
from fla_mesa.train.recipe import prepare
from fla_mesa.train.settings import parse
from tests.train import ranks


def metrics_of(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def gradient_norms(checkpoint: Path) -> list[float]:
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [row["grad_norm"] for row in history if "grad_norm" in row]


@pytest.fixture(scope="module")
def runs(text, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sharded")
    run_on_ranks(ranks.train_resume_refuse, 2, tmp_path_factory.mktemp("group"), text, path)
    return path


def test_two_processes_give_the_figures_of_one(runs, flags, text, tmp_path):
    one = tmp_path / "one"
    assert main(flags(text, one, *ranks.FOUR_STEPS, "--per_device_train_batch_size", 4)) == 0
    first, second = metrics_of(one), metrics_of(runs / "whole")
    assert second["processes"] == 2 and second["parameters"] == first["parameters"]
    for curve in ("train", "validation"):
        assert len(first["history"][curve]) == len(second["history"][curve]) > 1
        for (_, loss), (_, other) in zip(first["history"][curve], second["history"][curve], strict=True):
            assert loss == pytest.approx(other, rel=2e-6)
    spent = [metrics["solver"]["history"]["cg_iterations"] for metrics in (first, second)]  # of all processes
    for (_, steps), (_, other) in zip(*spent, strict=True):
        assert steps == pytest.approx(other, abs=0.05)  # one step more or less where rounding decides
    norms = [gradient_norms(run / "checkpoint-4") for run in (one, runs / "whole")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and len(norms[0]) == 4
    for name, weight in load_file(one / "model.safetensors").items():
        torch.testing.assert_close(load_file(runs / "whole" / "model.safetensors")[name], weight, rtol=1e-3, atol=1e-4)


def test_no_process_holds_the_whole_of_a_checkpoint(runs):
    checkpoint = runs / "whole" / "checkpoint-4"
    assert run_folder.is_complete(checkpoint)
    names = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*")}
    assert {f"{part}/__{rank}_0.distcp" for part in (sharding.WEIGHTS, sharding.OPTIMIZER) for rank in (0, 1)} < names
    assert not any(name.endswith((".safetensors", "optimizer.pt")) for name in names)


def test_resumed_in_the_middle_it_ends_the_same(runs):
    whole, resumed = (load_file(runs / name / "model.safetensors") for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name


def test_a_checkpoint_becomes_a_folder_that_from_pretrained_reads(runs, tmp_path, capsys):
    checkpoint, output = runs / "whole" / "checkpoint-4", tmp_path / "exported"
    assert cli.main(["export", str(checkpoint), "--output_dir", str(output)]) == 0
    exported, trained = (AutoModelForCausalLM.from_pretrained(path) for path in (output, runs / "whole"))
    assert exported.config.architectures == trained.config.architectures == ["MesaNetForCausalLM"]
    for (name, weight), other in zip(exported.named_parameters(), trained.parameters(), strict=True):
        assert torch.equal(weight, other), name
    assert AutoTokenizer.from_pretrained(output)("abc")["input_ids"] == [97, 98, 99]
    assert "auto_map" in json.loads((output / "config.json").read_text())


def test_what_cannot_be_exported(runs, tmp_path, capsys):
    broken = shutil.copytree(runs / "whole" / "checkpoint-4", tmp_path / "checkpoint-4")
    (broken / sharding.WEIGHTS / "__1_0.distcp").unlink()
    for checkpoint, output, message in (
        (broken, tmp_path / "new", "is incomplete"),
        (runs / "whole", tmp_path / "new", "is already whole: from_pretrained reads it directly"),
        (tmp_path, tmp_path / "new", "is not a checkpoint"),
        (tmp_path / "nothing", tmp_path / "new", "is not a folder"),
        (runs / "whole" / "checkpoint-4", broken, "is not empty"),
    ):
        assert cli.main(["export", str(checkpoint), "--output_dir", str(output)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_bfloat16_and_the_best_model(runs):
    assert {weight.dtype for weight in load_file(runs / "bfloat16" / "model.safetensors").values()} == {torch.float32}
    metrics = metrics_of(runs / "bfloat16")
    assert metrics["loss"] == pytest.approx(min(loss for _, loss in metrics["history"]["validation"]), rel=1e-3)


def test_a_checkpoint_that_is_not_in_pieces_is_not_gone_on_from(undisturbed):
    with pytest.raises(
        ValueError, match="was saved without --shard, so continue it the same way; got a command with it"
    ):
        sharding.check_kind(undisturbed / "checkpoint-12", sharded=True)


def test_when_a_process_dies_the_others_end_and_the_last_checkpoint_is_whole(text, tmp_path, tmp_path_factory):
    run = tmp_path / "run"
    with pytest.raises(AssertionError, match="rank 0"):  # it says that it lost the other; "did not end", if it waited
        run_on_ranks(ranks.lose_a_rank, 2, tmp_path_factory.mktemp("group"), text, run)
    assert run_folder.latest_checkpoint(run) == run / "checkpoint-2"
    run_on_ranks(ranks.go_on, 2, tmp_path_factory.mktemp("group"), text, run)
    assert metrics_of(run)["steps"] == 4
    assert AutoModelForCausalLM.from_pretrained(run).num_parameters() == metrics_of(run)["parameters"]


def test_what_is_spread_decays_as_what_is_whole(flags, text, tmp_path, tmp_path_factory):
    run = tmp_path / "run"
    answers = run_on_ranks(ranks.sharded_groups, 2, tmp_path_factory.mktemp("group"), text, run)
    exempt = {name for name, decay, _ in answers[0] if decay == 0}
    assert all(spread for _, _, spread in answers[0]) and {decay for _, decay, _ in answers[0]} == {0.0, 0.3}
    assert exempt == exempt_parameters(prepare(*parse(flags(text, tmp_path / "one")), say=lambda _: None).trainer.model)
