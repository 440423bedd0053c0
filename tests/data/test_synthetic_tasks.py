"""Each generator against its paper's numbers, and against an oracle that reads only what a model reads."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fla_mesa.data.synthetic.compression import Compression
from fla_mesa.data.synthetic.draw import choose_distinct, choose_weighted, hash_rows
from fla_mesa.data.synthetic.fuzzy_recall import FuzzyInContextRecall
from fla_mesa.data.synthetic.in_context_recall import InContextRecall, NoisyInContextRecall
from fla_mesa.data.synthetic.memorization import Memorization
from fla_mesa.data.synthetic.mqar import MQAR
from fla_mesa.data.synthetic.own_haystack_niah import OwnHaystackNIAH
from fla_mesa.data.synthetic.regbench import RegBench
from fla_mesa.data.synthetic.selective_copying import SelectiveCopying
from fla_mesa.data.synthetic.task import IGNORE, SPLITS

TASKS = [
    MQAR(),
    MQAR(vocab_size=64, length=32, num_pairs=8, power_a=1.0, random_filler=False),
    InContextRecall(),
    InContextRecall(train_on="answers"),
    NoisyInContextRecall(),
    FuzzyInContextRecall(),
    FuzzyInContextRecall(vocab_size=11, length=60, max_key_motif=2, max_value_motif=1),
    Memorization(),
    Compression(),
    SelectiveCopying(),
    RegBench(),
    RegBench(num_symbols=6, states=(3, 5), alphabet=(3, 6), edges=(1, 2), strings=(2, 4), string_length=(3, 9)),
    OwnHaystackNIAH(variant=1, length=400),
    OwnHaystackNIAH(variant=2, length=400),
    OwnHaystackNIAH(variant=3, length=400),
]
HASHES = [4318512646198107574, 521466407761434822, 2970792399699547190]
task_parameter = pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}-{TASKS.index(task)}")


def answers(task, rows):
    """The oracle's greedy next token after every position, [n, L]; it never sees the labels."""
    oracle = {
        MQAR: _recall_oracle,
        InContextRecall: _recall_oracle,
        NoisyInContextRecall: _recall_oracle,
        FuzzyInContextRecall: _fuzzy_oracle,
        Memorization: _memorization_oracle,
        Compression: _compression_oracle,
        SelectiveCopying: _copying_oracle,
        OwnHaystackNIAH: _needle_oracle,
    }[type(task)]
    return np.stack([oracle(task, ids) for ids in rows["input_ids"]])


def _recall_oracle(task, ids):
    """What followed this symbol when it first stood in a key's place."""
    predictions, known = np.zeros_like(ids), {}
    for t, token in enumerate(ids[:-1]):
        if token in known:
            predictions[t] = known[token]
        elif t % 2 == 0 and (not isinstance(task, MQAR) or t < 2 * task.num_pairs):
            known[token] = ids[t + 1]
    return predictions


def _fuzzy_oracle(task, ids):
    """Key symbols and value symbols are told apart by their ids; a key is known once its value has been read."""
    num_keys = (task.vocab_size - 1) // 2
    predictions, known = np.zeros_like(ids), {}
    key, value = (), ()
    for t, token in enumerate(ids):
        if token == task.padding:
            continue
        if token < num_keys:
            if value:
                known[key], key, value = value, (), ()
            key += (token,)
        else:
            value += (token,)
        if key in known and len(value) < len(known[key]):
            predictions[t] = known[key][len(value)]
    return predictions


def _memorization_oracle(task, ids):
    learnt = {}
    rows = task.generate("train", 256, 3)
    for row, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        learnt.update(zip(row[0:-1:2], labels[2::2], strict=True))
    predictions = np.zeros_like(ids)
    predictions[1::2] = [learnt[key] for key in ids[0:-1:2]]
    return predictions


def _compression_oracle(task, ids):
    return np.roll(ids, task.length - 1)


def _copying_oracle(task, ids):
    content = ids[ids < task.vocab_size - 2]
    predictions = np.zeros_like(ids)
    start = int(np.flatnonzero(ids == task.vocab_size - 1)[0]) + 1
    predictions[start : start + len(content)] = content
    return predictions


def _needle_oracle(task, ids):
    text = bytes(ids.astype(np.uint8)).decode("ascii")
    question = re.search(r"\nWhich (\w+) was it\? The \1 of ([a-z-]+) is", text)
    kind, key = question.groups()
    value = re.search(rf"The {kind} of {key} is ([0-9a-f-]+)\. ", text).group(1)
    predictions = np.zeros_like(ids)
    predictions[question.end() - 1 : len(ids) - 1] = list(f" {value}".encode())
    return predictions


@pytest.mark.parametrize("split", ["validation", "test"])
@task_parameter
def test_an_oracle_that_knows_the_rule_scores_one(task, split):
    if isinstance(task, RegBench):
        # No oracle can know a language after a few strings; one that knows the walk is always allowed.
        rows = task.generate(split, 40, 1)
        assert task.metric(np.roll(rows["labels"], -1, axis=1), rows)["accuracy"] == 1
        return
    rows = task.generate(split, 40, 1)
    assert task.metric(answers(task, rows), rows) == {"accuracy": 1.0, "accuracy_stderr": 0.0}


@task_parameter
def test_shapes_types_and_ranges(task):
    for split in SPLITS:
        rows = task.generate(split, 33, 5)
        for key in ("input_ids", "labels"):
            assert rows[key].shape == (33, task.columns)
            assert rows[key].dtype == np.int64
        assert rows["input_ids"].min() >= 0
        assert rows["input_ids"].max() < task.symbols
        scored = rows["labels"][rows["labels"] != IGNORE]
        assert scored.min() >= 0
        assert scored.max() < task.symbols
        assert ((rows["labels"][:, 1:] != IGNORE).sum(axis=1) > 0).all()


@task_parameter
def test_same_seed_same_rows_other_seed_other_rows(task):
    first, again, other = (task.generate("train", 20, seed) for seed in (7, 7, 8))
    for key in first:
        assert np.array_equal(first[key], again[key])
    assert not np.array_equal(first["input_ids"], other["input_ids"])


@task_parameter
def test_splits_share_no_sequence_whatever_the_seed(task):
    seen = {split: set() for split in SPLITS}
    for split in SPLITS:
        for seed in (0, 1):
            seen[split] |= {row.tobytes() for row in task.generate(split, 60, seed)["input_ids"]}
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_splits_are_disjoint_where_there_are_few_sequences():
    task = Memorization(vocab_size=9, length=6)  # 4 keys, 3 places: 64 sequences in all
    seen = [{tuple(row) for row in task.generate(split, 500, 0)["input_ids"]} for split in SPLITS]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 64


def test_too_few_sequences_for_a_split_is_an_error():
    # Two sequences in all for three splits: at least one split stays empty.
    messages = []
    for split in SPLITS:
        try:
            Compression(vocab_size=3, length=2).generate(split, 5)
        except ValueError as error:
            messages.append(str(error))
    assert messages
    assert all("mad-compression: only 0 of 5 sequences found for split" in message for message in messages)


def test_wrong_answers_score_zero_and_half_right_answers_half():
    task = SelectiveCopying(length=40, num_copied=4)
    rows = task.generate("test", 8)
    right = np.roll(rows["labels"], -1, axis=1)
    assert task.metric(right + 1, rows)["accuracy"] == 0
    half = right.copy()
    half[:, task.columns - 5 : task.columns - 3] += 1
    assert task.scores(half, rows) == pytest.approx([0.5] * 8)


def test_needle_scores_only_whole_answers():
    task = OwnHaystackNIAH(variant=1, length=400)
    rows = task.generate("test", 4)
    predictions = np.roll(rows["labels"], -1, axis=1)
    predictions[0, -2] += 1
    assert task.scores(predictions, rows).tolist() == [0, 1, 1, 1]


def test_predictions_of_another_shape_are_refused():
    rows = Compression().generate("test", 3)
    with pytest.raises(ValueError, match=r"predictions must have the labels' shape \(3, 63\), got \(3, 62\)"):
        Compression().metric(rows["labels"][:, :-1], rows)


# Statistics. The tolerances are four standard errors of the statistic for the number of draws.


def test_mqar_has_the_paper_s_layout():
    task = MQAR(length=128, num_pairs=8)
    rows = task.generate("train", 2000, 0)
    ids, labels = rows["input_ids"], rows["labels"]
    keys, values = ids[:, 0:16:2], ids[:, 1:16:2]
    assert (keys >= 1).all() and (keys < 4096).all()
    assert (values >= 4096).all() and (values < 8192).all()
    for row in range(50):
        assert len(set(keys[row])) == len(set(values[row])) == 8
    assert ((labels != IGNORE).sum(axis=1) == 8).all()
    # Every key is asked for once, at an even place after the pairs, and the symbol after it is not the answer.
    row, place = np.nonzero(labels != IGNORE)
    assert (place % 2 == 1).all() and (place > 16).all()
    assert np.array_equal(np.sort(ids[row, place - 1].reshape(-1, 8)), np.sort(keys))
    assert (ids[row, place] == labels[row, place]).mean() < 0.01
    # All symbols are used, and keys are uniform: the mean of n uniform draws from 1..4095.
    assert abs(keys.mean() - 2048) < 4 * 4095 / np.sqrt(12 * keys.size)


def test_mqar_gaps_follow_the_power_law():
    task, n = MQAR(length=256, num_pairs=16), 20_000
    rows = task.draw(np.random.default_rng(0), n, "train")
    # The first pair's query is drawn first, so that its slot has exactly the weights of the law.
    first_value = rows["input_ids"][:, 1]
    place = np.argmax(rows["labels"] == first_value[:, None], axis=1)
    observed = np.bincount((place - 1 - 32) // 2, minlength=112)
    expected = n * task.gap_weights / task.gap_weights.sum()
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert task.gap_weights[9] / task.gap_weights[0] == pytest.approx(10**-0.99)
    assert abs(chi_square - 111) < 4 * np.sqrt(2 * 111)


def test_recall_tables_and_noise():
    task = NoisyInContextRecall()
    rows = task.generate("test", 1280, 0)
    pairs = rows["input_ids"].reshape(1280, 64, 2)
    noise = pairs[:, :, 0] >= 16
    assert ((pairs[:, :, 1] >= 16) == noise).all()
    assert not noise[:, -1].any()
    # One pair of the 63 is never noise.
    assert abs(noise[:, :-1].mean() - 0.2 * 62 / 63) < 4 * np.sqrt(0.16 / noise[:, :-1].size)
    assert set(pairs[~noise][:, 0]) == set(range(8))
    assert set(pairs[~noise][:, 1]) == set(range(8, 16))
    assert set(pairs[noise].reshape(-1)) == set(range(16, 32))
    # One value a key and sequence; repeated keys, the last pair's among them, are what is scored.
    labels = rows["labels"].reshape(1280, 64, 2)
    assert (labels[:, :, 0] == IGNORE).all()
    assert (labels[:, -1, 1] == pairs[:, -1, 1]).all()
    for row in range(100):
        table = {}
        for (key, value), label, is_noise in zip(pairs[row], labels[row, :, 1], noise[row], strict=True):
            assert label == (value if key in table and not is_noise else IGNORE)
            if not is_noise:
                assert table.setdefault(key, value) == value


def test_recall_learns_every_symbol_and_evaluates_answers():
    task = InContextRecall()
    rows = task.generate("train", 50)
    assert np.array_equal(rows["labels"], rows["input_ids"])
    assert (task.generate("test", 50)["labels"] == IGNORE).mean() > 0.5
    assert (InContextRecall(train_on="answers").generate("train", 50)["labels"] == IGNORE).mean() > 0.5


def test_fuzzy_motifs():
    task = FuzzyInContextRecall()
    rows = task.generate("test", 1280, 0)
    key_sizes, value_sizes, pairs = Counter(), Counter(), []
    for ids in rows["input_ids"]:
        assert (np.diff((ids == 15).astype(int)) <= 0).all()  # padding on the left only
        text = "".join("k" if token < 7 else "v" for token in ids[ids != 15])
        assert re.fullmatch("(k+v+)+", text)
        key_sizes.update(map(len, re.findall("k+", text)))
        value_sizes.update(map(len, re.findall("v+", text)))
        pairs.append(text.count("kv"))
    assert set(key_sizes) == {3}
    total = sum(value_sizes.values())
    # Sizes 1, 2, 3 are equally likely, but for the effect of the end: longer pairs fit less often.
    assert all(abs(value_sizes[size] / total - 1 / 3) < 0.02 for size in (1, 2, 3))
    # 122 symbols of room, 5 a pair on average, and the last pair.
    assert abs(np.mean(pairs) - (122 / 5 + 0.5)) < 0.5
    train = task.generate("train", 300, 0)["input_ids"]
    sizes = Counter(len(run) for ids in train for run in re.findall("k+", "".join("k" if t < 7 else "v" for t in ids)))
    assert set(sizes) == {1, 2, 3}


def test_memorization_has_one_map_for_all_splits():
    task = Memorization()
    assert len(set(task.value_of_key)) == len(task.value_of_key) == 127
    assert set(task.value_of_key) <= set(range(127, 255))
    for split in SPLITS:
        rows = task.generate(split, 64, 9)
        assert (rows["input_ids"][:, 1::2] == 255).all()
        assert np.array_equal(rows["labels"][:, 2::2], task.value_of_key[rows["input_ids"][:, 0:-1:2]])
        assert (rows["labels"][:, 1::2] == IGNORE).all()
    assert not np.array_equal(task.value_of_key, Memorization(map_seed=1).value_of_key)


def test_selective_copying_layout():
    rows = SelectiveCopying().generate("test", 1280, 0)
    ids, labels = rows["input_ids"], rows["labels"]
    assert (ids[:, 239] == 15).all() and (ids == 15).sum() == 1280
    assert ((ids < 14).sum(axis=1) == 16).all()
    assert (ids[:, 238] < 14).all()  # the last symbol stands right before the copy symbol
    assert (ids[:, 240:] == 14).all()
    assert np.array_equal(labels[:, 241:], ids[ids < 14].reshape(1280, 16))
    # 223 blanks before 16 symbols, each before any of them with equal chance.
    first = np.argmax(ids < 14, axis=1)
    assert abs(first.mean() - 223 / 16) < 4 * np.sqrt(223 * 15 / 256 / 1280)


def test_regbench_numbers():
    task = RegBench()
    rows = task.generate("train", 1000, 0)
    assert task.columns == 19 * 50 - 1
    strings_of, lengths, letters = [], [], []
    for ids in rows["input_ids"]:
        body = ids[ids != 19]
        assert (ids[: len(body)] == body).all()
        strings = np.split(body, np.flatnonzero(body == 18))
        strings_of.append(len(strings))
        lengths += [len(string) - (i > 0) for i, string in enumerate(strings)]
        letters.append(len(set(body) - {18}))
    assert (min(strings_of), max(strings_of)) == (10, 19)
    assert (min(lengths), max(lengths)) == (1, 49)
    assert abs(np.mean(strings_of) - 14.5) < 4 * np.sqrt(99 / 12 / 1000)
    assert abs(np.mean(lengths) - 25) < 4 * np.sqrt(49**2 / 12 / len(lengths))
    assert max(letters) <= 18


def test_regbench_walks_are_walks_of_one_automaton_a_sequence():
    task = RegBench()
    rows = task.generate("test", 200, 0)
    ids, allowed = rows["input_ids"], rows["allowed"]
    is_symbol = ids < 18
    assert np.array_equal(allowed != 0, is_symbol)
    assert np.array_equal(np.where(is_symbol, ids, IGNORE), rows["labels"])
    taken = (allowed >> np.where(is_symbol, ids, 0)) & 1
    assert (taken[is_symbol] == 1).all()
    choices = np.array([bin(bits).count("1") for bits in allowed[is_symbol]])
    assert set(choices) == {1, 2, 3}
    for row in range(200):
        after = {}
        string = ()
        for symbol, bits in zip(ids[row], allowed[row], strict=True):
            if symbol >= 18:
                string = ()
                continue
            # Deterministic: what may follow a prefix depends on the prefix only.
            assert after.setdefault(string, bits) == bits
            string += (symbol,)


def test_regbench_accepts_what_the_automaton_allows_and_nothing_else():
    task = RegBench()
    rows = task.generate("test", 50, 0)
    lowest = (rows["allowed"] & -rows["allowed"]).astype(float)
    allowed_symbol = np.where(lowest > 0, np.log2(np.maximum(lowest, 1)), 0).astype(np.int64)
    assert task.metric(np.roll(allowed_symbol, -1, axis=1), rows)["accuracy"] == 1
    for never in (18, 19, 63, -1):  # separator, padding, ids outside
        assert task.metric(np.full_like(rows["labels"], never), rows)["accuracy"] == 0
    # A symbol that is not allowed is wrong even where it is a letter of the alphabet.
    forbidden = np.where(allowed_symbol == 0, 1, allowed_symbol - 1)
    right, scored = task.correct(np.roll(forbidden, -1, axis=1), rows)
    is_allowed = (rows["allowed"][:, 1:] >> forbidden[:, 1:]) & 1
    assert np.array_equal(right, scored & (is_allowed == 1))


def test_regbench_can_be_learnt_in_context():
    """What followed the last occurrence of the last three symbols is allowed far more often than chance."""
    task = RegBench()
    rows = task.generate("test", 60, 0)
    predictions = np.zeros_like(rows["input_ids"])
    for ids, guesses in zip(rows["input_ids"], predictions, strict=True):
        last = {}
        for t in range(2, len(ids) - 1):
            guesses[t] = last.get(tuple(ids[t - 2 : t + 1]), 0)
            last[tuple(ids[t - 2 : t + 1])] = ids[t + 1]
    assert task.metric(predictions, rows)["accuracy"] > 0.75
    assert task.metric(np.zeros_like(predictions), rows)["accuracy"] < 0.25


def test_regbench_language_tells_automata_apart_by_what_they_generate():
    task = RegBench(num_symbols=2, states=(2, 3), alphabet=(2, 2), edges=(1, 1), strings=(1, 2), string_length=(1, 2))
    symbol, target = task._automata(np.random.default_rng(0), 300)
    by_hash, by_strings = {}, {}
    for i, language in enumerate(task._language(symbol, target)):
        state, word = 0, []
        for _ in range(12):  # with one edge a state, the one infinite walk is the language
            word.append(int(symbol[i, state, 0]))
            state = target[i, state, 0]
        by_hash.setdefault(int(language), set()).add(i)
        by_strings.setdefault(tuple(word), set()).add(i)
    assert sorted(map(sorted, by_hash.values())) == sorted(map(sorted, by_strings.values()))
    assert 2 < len(by_hash) < 300


def test_needles_lie_everywhere_and_answers_differ():
    task = OwnHaystackNIAH(variant=2, length=600)
    rows = task.generate("train", 400, 0)
    texts = [bytes(ids.astype(np.uint8)).decode("ascii") for ids in rows["input_ids"]]
    depth = [re.search(r"The code of [a-z-]+ is \d{7}\. ", text).start() / 600 for text in texts]
    # Between the introduction and the question, uniform over the sentences.
    assert min(depth) < 0.15 and max(depth) > 0.75
    assert abs(np.mean(depth) - (min(depth) + max(depth)) / 2) < 0.05
    assert len({text[-7:] for text in texts}) > 395
    assert all(text.count(text[-7:]) == 2 for text in texts)
    assert ((rows["labels"] != IGNORE).sum(axis=1) == 8).all()


def test_needle_document_of_any_length():
    document = OwnHaystackNIAH(variant=3).document(np.random.default_rng(0), length=2000)
    assert len(document.context + document.answer) == 2000
    assert document.context.count(document.key) == 2
    assert document.answer.strip() in document.context
    with pytest.raises(ValueError, match=r"length must be at least \d+ for this document, got 100"):
        OwnHaystackNIAH(variant=1).document(np.random.default_rng(0), length=100)


# Draws.


@given(st.integers(1, 12), st.data())
def test_distinct_choices_are_distinct_and_in_range(population, data):
    k = data.draw(st.integers(0, population))
    chosen = choose_distinct(np.random.default_rng(0), 20, population, k)
    assert chosen.shape == (20, k)
    assert all(len(set(row)) == k and set(row) <= set(range(population)) for row in chosen)


def test_distinct_choices_are_uniform_in_every_column():
    chosen = choose_distinct(np.random.default_rng(0), 30_000, 5, 3)
    for column in chosen.T:
        assert abs(np.bincount(column, minlength=5) / 30_000 - 0.2).max() < 4 * np.sqrt(0.16 / 30_000)


def test_weighted_choices_have_the_weights_of_successive_draws():
    weights = np.array([4.0, 2.0, 1.0, 1.0])
    chosen = choose_weighted(np.random.default_rng(0), 40_000, weights, 2)
    first = np.bincount(chosen[:, 0], minlength=4) / 40_000
    assert abs(first - weights / 8).max() < 0.01
    after_zero = np.bincount(chosen[chosen[:, 0] == 0, 1], minlength=4) / (chosen[:, 0] == 0).sum()
    assert abs(after_zero - np.array([0, 0.5, 0.25, 0.25])).max() < 0.015


@pytest.mark.parametrize(
    "choose",
    [
        lambda: choose_distinct(np.random.default_rng(0), 1, 3, 4),
        lambda: choose_weighted(np.random.default_rng(0), 1, np.ones(3), 4),
    ],
)
def test_more_choices_than_there_are_is_an_error(choose):
    with pytest.raises(ValueError, match=r"k must be at most .* 3, got 4"):
        choose()


def test_row_hash_is_fixed_for_ever():
    """The splits of every published number depend on it."""
    rows = np.array([[1, 2, 3], [1, 2, 4], [3, 2, 1]])
    assert hash_rows(rows).tolist() == HASHES
    share = np.bincount((hash_rows(np.arange(40_000)[:, None]) >> np.uint64(62)).astype(int)) / 40_000
    assert abs(share - 0.25).max() < 4 * np.sqrt(0.1875 / 40_000)


# Parameters.


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_allowed_mqar_works(data):
    pairs = data.draw(st.integers(1, 6))
    length = 2 * data.draw(st.integers(2 * pairs, 20))
    vocab_size = data.draw(st.integers(2 * pairs + 2, 60))
    task = MQAR(vocab_size=vocab_size, length=length, num_pairs=pairs, power_a=data.draw(st.floats(0.01, 2)))
    rows = task.generate(data.draw(st.sampled_from(SPLITS)), 5, 0)
    assert task.metric(answers(task, rows), rows)["accuracy"] == 1
    assert ((rows["labels"] != IGNORE).sum(axis=1) == pairs).all()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_allowed_recall_works(data):
    noise = data.draw(st.integers(1, 6))
    task = NoisyInContextRecall(
        vocab_size=noise + data.draw(st.integers(4, 20)),
        length=2 * data.draw(st.integers(4, 30)),
        noise_vocab_size=noise,
        noise_share=data.draw(st.floats(0, 0.9)),
    )
    rows = task.generate("test", 5, 0)
    assert task.metric(answers(task, rows), rows)["accuracy"] == 1


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_every_allowed_fuzzy_recall_works(data):
    keys, values = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    task = FuzzyInContextRecall(
        vocab_size=data.draw(st.integers(1 + 2 * max(keys, values) + 4, 16)),
        length=data.draw(st.integers(2 * (keys + values) + 10, 80)),
        max_key_motif=keys,
        max_value_motif=values,
    )
    rows = task.generate("test", 5, 0)
    assert task.metric(answers(task, rows), rows)["accuracy"] == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MQAR(length=63), r"mqar: length must be even, got 63"),
        (lambda: MQAR(length=14), r"mqar: length must be an integer >= 16, got 14"),
        (lambda: MQAR(vocab_size=8), r"mqar: vocab_size must be an integer >= 10, got 8"),
        (lambda: MQAR(num_pairs=0), r"mqar: num_pairs must be an integer >= 1, got 0"),
        (lambda: MQAR(num_pairs=2.0), r"mqar: num_pairs must be an integer >= 1, got 2\.0"),
        (lambda: MQAR(num_pairs=True), r"mqar: num_pairs must be an integer >= 1, got True"),
        (lambda: MQAR(power_a=0), r"mqar: power_a must be a number > 0, got 0"),
        (lambda: MQAR(random_filler="no"), r"mqar: random_filler must be True or False, got 'no'"),
        (lambda: NoisyInContextRecall(noise_share=1.0), r"noise_share must be a number in \[0, 1\), got 1\.0"),
        (lambda: InContextRecall(noise_share=0.1), r"noise_vocab_size must be >= 1 where noise_share is above 0"),
        (lambda: InContextRecall(length=7), r"length must be even, got 7"),
        (lambda: InContextRecall(train_on="some"), r"train_on must be one of 'all', 'answers', got 'some'"),
        (lambda: FuzzyInContextRecall(max_key_motif=5), r"max_key_motif must be an integer in \[1, 4\], got 5"),
        (lambda: FuzzyInContextRecall(vocab_size=128), r"must be at most 20000, got 262144"),
        (lambda: Memorization(length=3), r"length must be even, got 3"),
        (lambda: Memorization(map_seed=-1), r"map_seed must be an integer >= 0, got -1"),
        (lambda: Compression(vocab_size=2), r"vocab_size must be an integer >= 3, got 2"),
        (lambda: SelectiveCopying(length=33), r"length must be an integer >= 34, got 33"),
        (lambda: RegBench(num_symbols=63), r"num_symbols must be an integer in \[1, 62\], got 63"),
        (lambda: RegBench(edges=(1, 4)), r"edges\[1\] must be an integer in \[1, 3\], got 4"),
        (lambda: RegBench(states=12), r"states must be a pair \(first, last\), got 12"),
        (lambda: RegBench(strings=(9, 3)), r"strings\[1\] must be an integer >= 9, got 3"),
        (lambda: OwnHaystackNIAH(variant=4), r"variant must be one of 1, 2, 3, got 4"),
        (lambda: OwnHaystackNIAH(length=100), r"length must be an integer >= 320, got 100"),
        (lambda: Compression().generate("dev", 1), r"split must be one of 'train', 'validation', 'test', got 'dev'"),
        (lambda: Compression().generate("test", 0), r"n must be an integer >= 1, got 0"),
        (lambda: Compression().generate("test", 1, -3), r"seed must be an integer >= 0, got -3"),
    ],
)
def test_bad_parameters_say_what_came_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
