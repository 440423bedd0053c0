"""The demo at a very small setting: the comparison, its yardsticks, the sample, and being started again."""

import functools

import pytest

from fla_mesa.data import DataRequest, load_data
from fla_mesa.data.yardsticks import bigram_bits_per_byte
from fla_mesa.eval.compare import demo
from fla_mesa.train.sample import sample


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(demo, "sample", functools.partial(sample, new_tokens=20))


def test_demo(text, small, here, tmp_path, capsys):
    flags = [*small, "--data", str(text), "--output_dir", str(tmp_path / "demo"), "--models", "delta_net,mesanet"]
    assert demo.main(flags) == 0
    shown = capsys.readouterr().out
    splits = load_data(DataRequest(spec=str(text), seq_len=32, say=lambda _: None))
    bigram = bigram_bits_per_byte(splits.train, splits.validation)
    assert f"uniform bytes 8.000, byte bigram, add-one {bigram:.3f}" in shown
    cell = tmp_path / "demo/cells/matched-mesanet/lr0.003-seed1"
    written = sample(cell, demo.PROMPT, new_tokens=20, seed=1)
    assert written.startswith(demo.PROMPT) and all(f"  | {line}" in shown for line in written.splitlines())
    assert f"saved: {tmp_path / 'demo'}/" in shown

    here.clear()
    assert demo.main(flags) == 0 and not here  # goes on where it was: at the end
    assert capsys.readouterr().out == shown


def test_a_demo_without_text_writes_none(small, here, tmp_path, capsys):
    task = "mqar:vocab_size=64,length=32,num_pairs=2,train=32,validation=8,test=8"
    small = [flag for flag in small if flag not in ("--seq_len", "32")]  # the task has its own
    flags = [*small, "--data", task, "--output_dir", str(tmp_path), "--models", "mesanet"]
    assert demo.main(flags) == 0
    shown = capsys.readouterr().out
    assert "accuracy" in shown and "writes" not in shown and "For scale" not in shown


def test_the_demo_refuses_as_compare_does(tmp_path, capsys):
    assert demo.main(["--models", "rwkv", "--output_dir", str(tmp_path / "x")]) == 2
    assert "unknown model 'rwkv'" in capsys.readouterr().err and not (tmp_path / "x").exists()
