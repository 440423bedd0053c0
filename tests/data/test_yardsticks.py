"""The bigram yardstick against a count by hand."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from fla_mesa.data import Corpus, DataRequest, TokenBlocks, byte_tokenizer, load_data, tokenize
from fla_mesa.data.yardsticks import UNIFORM_BITS_PER_BYTE, bigram_bits_per_byte, yardsticks


def test_two_pairs_by_hand():
    train = TokenBlocks(np.array([1, 2, 1, 2, 1, 3], dtype=np.uint16), 2)
    validation = TokenBlocks(np.array([1, 2, 2, 3], dtype=np.uint16), 4)
    # After 1 came 2 twice and 3 once; after 2 came 1 twice; so p(2|1) = 3/260, p(2|2) = 1/259, p(3|2) = 1/259.
    bits = -math.log2(3 / 260) - 2 * math.log2(1 / 259)
    assert bigram_bits_per_byte(train, validation) == pytest.approx(bits / 3, rel=1e-12)


def test_first_tokens_of_blocks_are_not_scored_and_end_of_text_is_no_byte():
    documents, held_out = ["abracadabra", "banana"], ["cab", "dab", "bad"]
    train = TokenBlocks(tokenize(Corpus(documents), byte_tokenizer()).ids, 4)
    validation = TokenBlocks(tokenize(Corpus(held_out), byte_tokenizer()).ids, 5)

    line = [*b"abracadabra", 256, *b"banana", 256]
    pairs, firsts = Counter(pairwise(line)), Counter(line[:-1])
    bits, text_bytes = 0.0, 0
    scored = [*b"cab", 256, *b"dab", 256, *b"bad", 256]
    for block in (scored[:5], scored[5:10], scored[10:]):
        for previous, following in pairwise(block):
            bits -= math.log2((pairs[previous, following] + 1) / (firsts[previous] + 257))
            text_bytes += following != 256
    assert bigram_bits_per_byte(train, validation) == pytest.approx(bits / text_bytes, rel=1e-12)


@pytest.mark.parametrize("predicted", [False, True])
def test_what_is_not_predicted_costs_no_bits(tmp_path, predicted):
    (tmp_path / "a.txt").write_text("mesa " * 100)
    (tmp_path / "b.txt").write_text("net " * 100)
    request = DataRequest(spec=str(tmp_path), seq_len=7, predict_end_of_text=predicted, say=lambda _: None)
    splits = load_data(request)
    for blocks in (splits.train, splits.validation):
        targets = {int(label) for block in blocks for label in block["labels"][1:]}
        assert (256 in targets) == (predicted and 256 in blocks.ids[:-1])
    free = bigram_bits_per_byte(splits.train, TokenBlocks(splits.validation.ids, 7, keep_tail=True))
    got = bigram_bits_per_byte(splits.train, splits.validation)
    assert got == free if predicted else got <= free


def test_uniform_bytes_are_eight_bits():
    assert UNIFORM_BITS_PER_BYTE == 8.0


def test_yardsticks_are_of_bytes_alone(tmp_path):
    (tmp_path / "text.txt").write_text("mesa " * 200)
    text = load_data(DataRequest(spec=str(tmp_path / "text.txt"), seq_len=16, say=lambda _: None))
    found = yardsticks(text)
    assert found["uniform bytes"] == 8.0 and 0 < found["byte bigram, add-one"] < 8.0
    task = "mqar:vocab_size=64,length=16,num_pairs=2,train=20,validation=4,test=4"
    assert yardsticks(load_data(DataRequest(spec=task, say=lambda _: None))) == {}
