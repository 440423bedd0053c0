"""The registry, suites as datasets, their metric in the Trainer, and the number tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoTokenizer

from fla_mesa.data import synthetic

MAD = ["in-context-recall", "noisy-in-context-recall", "fuzzy-in-context-recall", "memorization", "compression",
       "selective-copying"]  # fmt: skip


def test_all_suites_are_there():
    assert synthetic.suites() == [
        "mqar",
        *(f"mad-{task}" for task in MAD),
        "regbench",
        *(f"own-haystack-niah-{variant}" for variant in (1, 2, 3)),
    ]


@pytest.mark.parametrize("name", synthetic.suites())
def test_a_spec_makes_the_same_suite_again(name):
    suite = synthetic.get(name)
    assert synthetic.get(suite.spec) == suite
    assert suite.vocab_size == max(task.symbols for task in suite.tasks)


def test_sizes_of_the_papers():
    mqar = synthetic.get("mqar")
    assert [(t.length, t.num_pairs, n) for t, n in mqar.train] == [
        (64, 4, 100_000), (128, 8, 20_000), (256, 16, 20_000), (256, 32, 20_000), (256, 64, 20_000)
    ]  # fmt: skip
    assert [(t.length, t.num_pairs, n) for t, n in mqar.test] == [
        (64, 4, 1000), (64, 8, 1000), (64, 16, 1000), (128, 32, 1000), (256, 64, 1000), (512, 128, 1000),
        (1024, 256, 1000),
    ]  # fmt: skip
    assert mqar.vocab_size == 8192 and mqar.max_length == 1024
    for task in MAD:
        suite = synthetic.get(f"mad-{task}")
        assert suite.test[0][1] == 1280
        assert suite.train[0][1] == (256 if task == "memorization" else 12_800)
    shapes = {task: (s.vocab_size, s.train[0][0].length) for task in MAD for s in [synthetic.get(f"mad-{task}")]}
    assert shapes == {
        "in-context-recall": (16, 128),
        "noisy-in-context-recall": (32, 128),
        "fuzzy-in-context-recall": (16, 128),
        "memorization": (256, 32),
        "compression": (16, 32),
        "selective-copying": (16, 256),
    }


def test_settings_in_a_spec():
    suite = synthetic.get("mqar:vocab_size=64,length=32,num_pairs=4,train=50,validation=6,test=7,seed=3")
    assert [suite.segments(split)[0][1] for split in synthetic.SPLITS] == [50, 6, 7]
    assert suite.train[0][0].length == 32
    assert suite.seed == 3
    assert synthetic.get("regbench:states=(4, 6),strings=(2,3)").train[0][0].states == (4, 6)
    assert synthetic.get("regbench:states=(4, 6),strings=(2,3)").spec == "regbench:states=(4,6),strings=(2,3)"
    assert synthetic.get("mad_in_context_recall:train_on=answers").train[0][0].train_on == "answers"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mquar", r"unknown synthetic suite 'mquar'\. Did you mean 'mqar'\? Available: mqar, mad-"),
        ("mqar:pairs=3", r"mqar: unknown setting 'pairs'; allowed: length, num_pairs, .*train, validation, test, seed"),
        ("mqar:length", r"mqar: settings must be key=value, each key once, got 'length'"),
        ("mqar:length=64,length=32", r"each key once, got 'length=32'"),
        ("mqar:length=long", r"mqar: length must be an integer >= 16, got 'long'"),
        ("mqar:train=100", r"mqar: the sizes train, validation, test need a single setting"),
        ("regbench:train=0", r"regbench: train must be an integer >= 1, got 0"),
        ("regbench:seed=-1", r"regbench: seed must be an integer >= 0, got -1"),
        ("own-haystack-niah-1:variant=2", r"unknown setting 'variant'"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ValueError, match=message):
        synthetic.get(spec)


def test_datasets_hold_what_generate_gives():
    suite = synthetic.get("mad-memorization:train=30,validation=4,test=5")
    dataset = suite.dataset("train")
    ((_, rows),) = suite.generate("train")
    assert dataset.column_names == ["input_ids", "labels"]
    assert np.array_equal(np.array(dataset["input_ids"][:]), rows["input_ids"])
    assert np.array_equal(np.array(dataset["labels"][:]), rows["labels"])


def test_a_mixture_has_rows_of_their_own_lengths_or_of_one():
    suite = synthetic.get("mqar")
    places = (0, 200, 400, 999)
    assert [len(suite.dataset("validation")[i]["input_ids"]) for i in places] == [64, 128, 256, 256]
    dataset = suite.dataset("validation", width=256)
    assert {len(dataset[i]["labels"]) for i in places} == {256}
    assert set(dataset[0]["labels"][64:]) == {-100}


def test_metric_names_the_settings_of_a_mixture():
    suite = synthetic.get("mqar")
    data = suite.generate("validation")
    predictions = np.zeros((1000, 256), dtype=np.int64)
    start = 0
    for task, rows in data:
        width = task.length
        predictions[start : start + 200, :width] = np.roll(rows["labels"], -1, axis=1)
        start += 200
    predictions[800:] = 0  # the last setting, all wrong
    metric = suite.metric("validation", predictions, data)
    assert metric["accuracy"] == pytest.approx(0.8)
    assert metric["accuracy/64x4"] == 1 and metric["accuracy/256x64"] == 0
    assert metric["accuracy_stderr"] == pytest.approx(0.4 / np.sqrt(999))
    with pytest.raises(ValueError, match=r"predictions must be \[1000, L\] for split 'validation', got shape \(3, 4\)"):
        suite.metric("validation", np.zeros((3, 4)), data)


def test_regbench_counts_allowed_symbols():
    suite = synthetic.get("regbench:train=10,validation=20,test=10,strings=(3,4),string_length=(2,6)")
    ((_, rows),) = suite.generate("validation")

    taken = np.roll(rows["labels"], -1, axis=1)
    assert suite.metric("validation", taken)["accuracy"] == 1.0
    # Another allowed symbol than the one taken is right as well.
    highest = 2 ** np.floor(np.log2(np.maximum(rows["allowed"], 1))).astype(np.int64)
    others = np.roll(np.log2(highest).astype(np.int64), -1, axis=1)
    assert (others != taken).any()
    assert suite.metric("validation", others)["accuracy"] == 1.0


def test_number_tokenizer_round_trip_and_memory(tmp_path):
    suite = synthetic.get("mqar:vocab_size=64,length=32,num_pairs=4")
    synthetic.number_tokenizer(suite).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = suite.generate("test")[0][1]["input_ids"][0].tolist()
    assert tokenizer(" ".join(map(str, ids)))["input_ids"] == ids
    assert tokenizer.decode(ids) == " ".join(map(str, ids))
    assert len(tokenizer) == suite.vocab_size
    assert synthetic.get(tokenizer.init_kwargs["synthetic_suite"]) == suite
    with pytest.raises(Exception, match="UNK"):
        tokenizer("words")


def test_number_tokenizer_refuses_text_suites():
    with pytest.raises(ValueError, match="the ids of 'own-haystack-niah-2' are bytes"):
        synthetic.number_tokenizer(synthetic.get("own-haystack-niah-2"))
