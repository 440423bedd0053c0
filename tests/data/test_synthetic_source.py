"""The suites as sources of the training command."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fla_mesa.data import DataRequest, synthetic
from fla_mesa.data.synthetic.source import load
from fla_mesa.data.tokenizer import is_byte_tokenizer

SMALL = "mqar:vocab_size=64,length=32,num_pairs=2,train=20,validation=6"


def quiet(spec, **options):
    return DataRequest(spec=spec, say=lambda line: None, **options)


def test_splits_are_those_of_the_suite():
    splits = load(quiet(SMALL))
    ((_, rows),) = synthetic.get(SMALL).generate("train")
    assert (len(splits.train), len(splits.validation)) == (20, 6)
    assert splits.seq_len == 32 and splits.vocab_size == 64
    row = splits.train[3]
    assert set(row) == {"input_ids", "labels"}
    assert row["input_ids"].dtype == row["labels"].dtype == torch.int64
    assert np.array_equal(row["input_ids"], rows["input_ids"][3]) and np.array_equal(row["labels"], rows["labels"][3])
    assert splits.tokenizer.init_kwargs["synthetic_suite"] == synthetic.get(SMALL).spec
    assert splits.special_ids["pad_token_id"] == 0
    assert splits.bytes_per_token is None


def test_a_mixture_of_lengths_is_filled_up_with_what_is_not_scored(monkeypatch):
    small = tuple((synthetic.get(f"mqar:vocab_size=64,length={n},num_pairs=2").train[0][0], 5) for n in (16, 24))
    suite = synthetic.Suite("mqar", "mqar", 0, small, small, small)
    monkeypatch.setattr("fla_mesa.data.synthetic.source.get", lambda spec: suite)
    splits = load(quiet("mqar"))
    assert splits.seq_len == 24
    short, long = splits.train[0], splits.train[9]
    assert len(short["input_ids"]) == len(long["input_ids"]) == 24
    assert (short["labels"][16:] == -100).all() and (short["input_ids"][16:] == 0).all()
    assert (short["labels"] != -100).sum() == (long["labels"] != -100).sum() == 2


def test_a_suite_of_bytes_has_the_byte_tokenizer():
    splits = load(quiet("own-haystack-niah-1:length=320,train=3,validation=2"))
    assert is_byte_tokenizer(splits.tokenizer)
    assert splits.vocab_size == 257


def test_the_fingerprint_tells_data_apart():
    same, again, other = (load(quiet(f"{SMALL},seed={seed}")).sha256 for seed in (1, 1, 2))
    assert same == again != other


@pytest.mark.parametrize("option", ["validation", "config", "text_column", "tokenizer"])
def test_options_without_meaning_are_refused(option):
    with pytest.raises(ValueError, match=f"{option}: does not apply to --data mqar:"):
        load(quiet(SMALL, **{option: "x"}))


def test_a_width_too_small_is_refused():
    with pytest.raises(ValueError, match="width must be at least the length of the sequences, 32; got 16"):
        synthetic.get(SMALL).dataset("train", width=16)
