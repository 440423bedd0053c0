"""The archives of a release hold a model that loads, of each architecture the best run, and always the same bytes."""

import hashlib
import runpy
import tarfile

import pytest
import torch
from transformers import AutoModelForCausalLM

from fla_mesa.json_files import write_json
from fla_mesa.models import MesaNetConfig, MesaNetForCausalLM
from fla_mesa.models.remote_code import write_remote_code
from tests.project import ROOT

pack = runpy.run_path(str(ROOT / "benchmarks" / "pack_checkpoints.py"))["main"]


@pytest.fixture
def comparison(tmp_path):
    """Two seeds of one model; the second is the better."""
    for seed, loss in ((1, 2.5), (2, 2.25)):
        torch.manual_seed(seed)
        folder = tmp_path / "runs" / "cells" / "matched-mesanet" / f"lr0.003-seed{seed}"
        config = MesaNetConfig(vocab_size=16, hidden_size=16, num_hidden_layers=1, num_heads=1, head_dim=16)
        MesaNetForCausalLM(config).save_pretrained(folder)
        write_remote_code(folder)
        (folder / "training_args.bin").write_bytes(b"a pickle")
        write_json(
            folder / "metrics.json", {"size": "tiny", "loss": loss, "bits_per_byte": None, "parameters": 1, "steps": 4}
        )
    return tmp_path / "runs"


def test_the_best_run_of_each_model_loads(comparison, tmp_path, capsys):
    assert pack([str(comparison), "--output_dir", str(tmp_path / "dist")]) == 0
    archive = tmp_path / "dist" / "matched-mesanet-tiny.tar.gz"
    assert hashlib.sha256(archive.read_bytes()).hexdigest() in (tmp_path / "dist" / "SHA256SUMS").read_text()
    assert "2.2500" in capsys.readouterr().out
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    assert not (folder / "training_args.bin").exists()
    assert f'from_pretrained("{folder.name}")' in (folder / "README.md").read_text()
    there = comparison / "cells" / "matched-mesanet" / "lr0.003-seed2"
    ours, kept = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder, there))
    assert all(torch.equal(ours[name], kept[name]) for name in kept)


def test_the_same_runs_give_the_same_bytes(comparison, tmp_path):
    for name in ("a", "b"):
        pack([str(comparison), "--output_dir", str(tmp_path / name)])
    assert (tmp_path / "a" / "SHA256SUMS").read_text() == (tmp_path / "b" / "SHA256SUMS").read_text()


def test_what_is_no_comparison_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no finished run in"):
        pack([str(tmp_path)])


def test_what_is_there_is_not_touched(comparison, tmp_path):
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "mine").write_text("")
    with pytest.raises(SystemExit, match="is not empty"):
        pack([str(comparison), "--output_dir", str(tmp_path / "dist")])
