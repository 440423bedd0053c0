"""The demo at a very small setting: the table, the sample, and being started again."""

import functools
import re

from fla_mesa.data import DataRequest, load_data
from fla_mesa.data.yardsticks import bigram_bits_per_byte
from fla_mesa.train import demo
from fla_mesa.train.sample import sample


def test_demo(flags, text, tmp_path, capsys, monkeypatch):
    short = functools.partial(sample, new_tokens=20)
    monkeypatch.setattr(demo, "sample", short)
    small = flags(text, tmp_path / "demo")
    assert demo.main(small) == 0
    shown = capsys.readouterr().out
    figures = {name.strip(): float(bits) for name, bits in re.findall(r"^  (\S.*?)  +(\d+\.\d+)$", shown, re.MULTILINE)}
    splits = load_data(DataRequest(spec=str(text), seq_len=32, say=lambda _: None))
    assert figures["uniform bytes"] == 8.0
    assert figures["byte bigram, add-one"] == round(bigram_bits_per_byte(splits.train, splits.validation), 3)
    assert 0 < figures["mesanet tiny"] < 8.5
    written = short(tmp_path / "demo", demo.PROMPT)
    assert written.startswith(demo.PROMPT) and all(f"  | {line}" in shown for line in written.splitlines())
    assert f"saved: {tmp_path / 'demo'}/" in shown

    assert demo.main(small) == 0  # goes on where it was: at the end
    again = capsys.readouterr().out
    assert "all 12 steps have been done" in again and shown.split("\nvalidation text")[1] in again
    assert demo.main([*small, "--overwrite"]) == 0
    assert "steps have been done" not in capsys.readouterr().out


def test_demo_refuses_what_its_yardsticks_do_not_measure(tmp_path, capsys):
    task = "mqar:vocab_size=64,length=16,num_pairs=2,train=50"
    assert demo.main(["--data", task, "--output_dir", str(tmp_path / "x")]) == 2
    assert "yardsticks are of bytes" in capsys.readouterr().err
    assert not list((tmp_path / "x").glob("*"))


def test_sample_is_the_same_for_the_same_seed(undisturbed):
    first, again = (sample(undisturbed, "the ", new_tokens=20, seed=1) for _ in range(2))
    assert first == again != sample(undisturbed, "the ", new_tokens=20, seed=2)
