"""`--streaming`: a run goes on at the very next block, ranks share the blocks that one would see, and the end of the data is said."""

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from fla_mesa.data import block_stream
from fla_mesa.testing.ranks import run_on_ranks
from fla_mesa.train import run_folder
from fla_mesa.train.command import main
from fla_mesa.train.recipe import prepare, train
from fla_mesa.train.settings import parse
from fla_mesa.train.status import read_status
from tests.train import ranks
from tests.train.conftest import TINY

STREAM = ranks.STREAM


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three parquet files with about 70 blocks of 32 bytes, some 60 of them to train on: 15 steps of 4."""
    folder = tmp_path_factory.mktemp("tables")
    for file in range(3):
        texts = [f"file {file} row {row} " + "xyz"[row % 3] * (row % 23) for row in range(30)]
        pq.write_table(pa.table({"text": texts}), folder / f"part{file}.parquet")
    return folder


@pytest.fixture(autouse=True)
def few_documents_at_a_time(monkeypatch):
    monkeypatch.setattr(block_stream, "DOCUMENTS_A_CALL", 8)


def metrics_of(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def rows_seen(flags: list[str]) -> list[list[int]]:
    seen, run = [], prepare(*parse(flags), say=lambda _: None)
    step = run.trainer.training_step
    run.trainer.training_step = lambda model, inputs, *args: (
        seen.extend(inputs["input_ids"].tolist()),
        step(model, inputs, *args),
    )[1]
    train(run)
    return seen


@pytest.fixture
def whole(flags, folder, tmp_path) -> Path:
    """A run that nothing has disturbed: 12 steps of 4 blocks, with checkpoints after 8 and 12. It draws random numbers."""
    assert main(flags(folder, tmp_path / "whole", *STREAM, "--neftune_noise_alpha", 5)) == 0
    return tmp_path / "whole"


@pytest.mark.parametrize("accumulated", [1, 2])
def test_goes_on_at_the_very_next_block(flags, folder, whole, tmp_path, accumulated):
    more = (*STREAM, "--neftune_noise_alpha", 5)
    if accumulated > 1:
        more += ("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2)
        whole = tmp_path / "accumulated"
        assert main(flags(folder, whole, *more)) == 0
    run = shutil.copytree(whole, tmp_path / "run")
    for checkpoint in ("checkpoint-12",):
        shutil.rmtree(run / checkpoint)
    for result in ("metrics.json", "model.safetensors"):
        (run / result).unlink()
    assert run_folder.latest_checkpoint(run) == run / "checkpoint-8"
    assert main(flags(folder, run, *more, "--resume")) == 0
    first, second = metrics_of(whole), metrics_of(run)
    assert first["history"] == second["history"] and first["loss"] == second["loss"]
    assert first["epochs"] == second["epochs"]
    weights = load_file(run / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in load_file(whole / "model.safetensors").items())


def test_a_step_is_a_number_of_blocks_of_the_stream_in_its_order(flags, folder, tmp_path):
    command = flags(folder, tmp_path / "run", *STREAM)
    prepared = prepare(*parse(command), say=lambda _: None)
    expected = [row["input_ids"].tolist() for row in prepared.splits.train]
    seen = rows_seen(command)
    assert seen == expected[: 12 * 4] and len(expected) > len(seen)
    assert seen != rows_seen(flags(folder, tmp_path / "other", *STREAM, "--data_seed", 1))


@pytest.fixture(scope="module")
def on_two_ranks(folder, tmp_path_factory) -> tuple[list[list[list[int]]], Path]:
    output = tmp_path_factory.mktemp("two")
    return run_on_ranks(ranks.stream_and_go_on, 2, tmp_path_factory.mktemp("group"), folder, output), output


def test_two_ranks_see_what_one_sees_and_no_block_twice(on_two_ranks, flags, folder, tmp_path, monkeypatch):
    seen, _ = on_two_ranks
    steps = [rank[2 * step : 2 * step + 2] for step in range(4) for rank in seen]
    together = [row for rows in steps for row in rows]
    assert len(together) == 16 and len({tuple(row) for row in together}) == 16
    one = (*ranks.FOUR_STEPS, "--per_device_train_batch_size", 4)
    # the ranks' processes read 256 documents at a time
    monkeypatch.setattr(block_stream, "DOCUMENTS_A_CALL", 256)
    assert together == rows_seen(flags(folder, tmp_path / "one", *one, *STREAM))


def test_two_ranks_go_on_bit_exactly(on_two_ranks):
    _, output = on_two_ranks
    first, second = metrics_of(output / "whole"), metrics_of(output / "resumed")
    assert first["processes"] == 2 and first["history"] == second["history"] and first["loss"] == second["loss"]


def test_the_end_of_the_stream_is_said_and_more_passes_go_on(flags, folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(flags(folder, run, *STREAM, "--max_steps", 20)) == 2
    said = capsys.readouterr().err
    stream = prepare(*parse(flags(folder, tmp_path / "x", *STREAM)), say=lambda _: None).splits.train
    blocks = len(list(stream))
    steps = blocks // 4
    assert 12 < steps < 20
    assert (
        f"ended after {stream.read.tokens:,} tokens of {stream.read.documents} documents, enough for {steps} of 20 steps"
        in said
    )
    assert "to continue, pass a larger --num_train_epochs, to fla-mesa train with --resume" in said
    assert not (run / "metrics.json").exists() and run_folder.latest_checkpoint(run) == run / f"checkpoint-{steps}"
    status = read_status(run)
    assert status is not None and (status.state, status.step) == ("failed", steps) and "ended after" in status.reason

    again = ("--max_steps", 20, "--resume")
    assert main(flags(folder, run, *STREAM, *again)) == 2  # nothing has changed
    assert f"enough for {steps} of 20 steps" in capsys.readouterr().err
    twice = (*STREAM, "--num_train_epochs", 2)
    assert main(flags(folder, run, *twice, *again)) == 0
    assert main(flags(folder, tmp_path / "at_once", *twice, "--max_steps", 20)) == 0
    assert metrics_of(run)["loss"] == metrics_of(tmp_path / "at_once")["loss"]
    assert metrics_of(run)["steps"] == 20


def test_a_stream_shorter_than_a_step(flags, folder, tmp_path, capsys):
    assert main(flags(folder, tmp_path / "run", *STREAM, "--per_device_train_batch_size", 500)) == 2
    said = capsys.readouterr().err
    assert "the stream ends after" in said and "tokens, too few for a step of 500 x 32 (seq_len)" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--max_steps", "-1"), "streaming: needs --max_steps"),
        (("--num_train_epochs", "1.5"), "allowed are whole numbers of passes over it, got 1.5"),
        (("--dataloader_num_workers", "1"), "dataloader_num_workers: with --streaming, allowed is 0"),
        (("--train_sampling_strategy", "sequential"), "a stream is shuffled only by --shuffle_buffer"),
        (("--auto_find_batch_size",), "streaming, auto_find_batch_size: allowed is one of the two"),
        (("--shuffle_buffer", "0"), "shuffle_buffer: allowed is 1 or more, got 0"),
    ],
)
def test_what_a_stream_does_not_go_with(flags, folder, tmp_path, capsys, change, message):
    given = [word for word in flags(folder, tmp_path / "run", *STREAM) if word]
    for word in change[:1]:
        while word in given:
            at = given.index(word)
            del given[at : at + 2]
    assert main([*given, *change]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--shuffle_buffer", "--held_out_tokens"])
def test_flags_of_streams_mean_nothing_without_one(flags, text, tmp_path, capsys, flag):
    assert main(flags(text, tmp_path / "run", flag, 5)) == 2
    assert f"{flag[2:]}: allowed is nothing without --streaming, got 5" in capsys.readouterr().err


def test_a_run_goes_on_with_the_same_stream_only(flags, folder, whole, capsys):
    other = ("--streaming", "--held_out_tokens", 200, "--shuffle_buffer", 16, "--neftune_noise_alpha", 5)
    assert main(flags(folder, whole, *other, "--resume")) == 2
    assert "shuffle_buffer was 8 and is now 16" in capsys.readouterr().err
    assert main(flags(folder, whole, "--neftune_noise_alpha", 5, "--resume")) == 2
    assert "data was" in capsys.readouterr().err


def test_a_comparison_of_streams(folder, tmp_path):
    """Through the command that measures checkpoints on the same held-out text."""
    from fla_mesa.cli import main as command

    settings = ["--data", folder, "--output_dir", tmp_path / "run", "--models", "mesanet", "--config_overrides", TINY]
    settings += ["--seq_len", 32, "--max_steps", 2, "--per_device_train_batch_size", 4, "--position_tokens", 64]
    assert command(["compare", *map(str, [*settings, *STREAM])]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["models"][0]["bits_per_byte"] is not None and report["models"][0]["loss_by_position"]


def test_a_comparison_whose_stream_ends_goes_on_with_more_passes(folder, tmp_path):
    from fla_mesa.cli import main as command

    settings = ["--data", folder, "--output_dir", tmp_path / "run", "--models", "mesanet", "--config_overrides", TINY]
    settings += ["--seq_len", 32, "--max_steps", 20, "--per_device_train_batch_size", 4, "--position_tokens", 64]
    settings += [*STREAM, "--save_steps", 5]
    assert command(["compare", *map(str, settings)]) == 1
    assert "to continue, pass a larger --num_train_epochs" in (tmp_path / "run" / "report.md").read_text()
    assert command(["compare", *map(str, settings), "--num_train_epochs", "3"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["run"]["steps"] == 20 and not report["models"][0]["failures"]
    (log,) = (tmp_path / "run" / "cells").glob("*/*.train.log")
    assert re.search(r"going on from .*checkpoint-15\n", log.read_text())
