"""Whose folder it is, which checkpoints are whole, and which may go."""

import pytest

from fla_mesa.train import run_folder


def checkpoint(run, step, complete=True):
    path = run / f"checkpoint-{step}"
    (path / "shards").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"x" * step)
    (path / "shards" / "0.bin").write_bytes(b"y")
    if complete:
        run_folder.mark_complete(path)
    return path


def steps(run):
    return [int(path.name.split("-")[1]) for path in run_folder._checkpoints(run)]


def test_latest_is_the_last_whole_one(tmp_path):
    assert run_folder.latest_checkpoint(tmp_path) is None
    assert run_folder.latest_checkpoint(tmp_path / "none") is None
    nine, ten, eleven = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10), checkpoint(tmp_path, 11, complete=False)
    (tmp_path / "checkpoint-best").mkdir()
    assert run_folder.latest_checkpoint(tmp_path) == ten  # by number, not by name
    (ten / "model.safetensors").write_bytes(b"x")  # truncated
    assert run_folder.latest_checkpoint(tmp_path) == nine
    (nine / "shards" / "0.bin").unlink()
    assert run_folder.latest_checkpoint(tmp_path) is None
    run_folder.mark_complete(eleven)
    (eleven / run_folder.COMPLETE_FILE).write_text("{")
    assert run_folder.latest_checkpoint(tmp_path) is None


def test_incomplete_ones_are_removed(tmp_path):
    checkpoint(tmp_path, 1)
    checkpoint(tmp_path, 2, complete=False)
    assert run_folder.remove_incomplete(tmp_path) == ["checkpoint-2"]
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize(("limit", "kept"), [(None, [1, 2, 3, 4]), (0, [1, 2, 3, 4]), (3, [2, 3, 4]), (1, [4])])
def test_oldest_go_first(tmp_path, limit, kept):
    for step in (1, 2, 3, 4):
        checkpoint(tmp_path, step)
    run_folder.keep_latest(tmp_path, limit)
    assert steps(tmp_path) == kept


def test_the_best_and_the_unfinished_stay(tmp_path):
    best = checkpoint(tmp_path, 1)
    for step in (2, 3):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 4, complete=False)
    run_folder.keep_latest(tmp_path, 1, [best])
    assert steps(tmp_path) == [1, 3, 4]


def test_a_run_is_removed_and_nothing_else(tmp_path):
    checkpoint(tmp_path, 1)
    for name in ("run.json", "metrics.json", "model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    run_folder.check_removable(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds more than an earlier run \(notes.txt\)"):
        run_folder.check_removable(tmp_path)
    run_folder.remove_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match="do not belong to a run"):
        run_folder.check_removable(tmp_path)


def test_unreadable_run_file(tmp_path):
    (tmp_path / "run.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"run\.json cannot be read"):
        run_folder.stored_run(tmp_path)
