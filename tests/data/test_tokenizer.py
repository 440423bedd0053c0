"""The byte tokenizer: ids are bytes, nothing is lost, and it comes back from disk as it was."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fla_mesa.data import tokenizer as byte_level
from fla_mesa.data.tokenizer import END_OF_TEXT, END_OF_TEXT_ID, byte_tokenizer, is_byte_tokenizer

TOKENIZER = byte_tokenizer()
# Every string that UTF-8 can write (it cannot write lone surrogates).
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@settings(deadline=None)
@given(texts)
def test_ids_are_the_utf8_bytes_and_come_back(text):
    ids = TOKENIZER(text, split_special_tokens=True)["input_ids"]
    assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == text
    assert byte_level.encode(text.encode()).tolist() == ids


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_come_back(data):
    assert byte_level.decode(byte_level.encode(data)) == data


def test_every_byte_is_its_own_id():
    assert byte_level.encode(bytes(range(256))).tolist() == list(range(256))
    assert TOKENIZER("".join(map(chr, range(128))))["input_ids"] == list(range(128))


def test_end_of_text_begins_ends_and_pads():
    assert len(TOKENIZER) == TOKENIZER.vocab_size == 257
    assert {TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id} == {END_OF_TEXT_ID}
    assert TOKENIZER(f"a{END_OF_TEXT}b")["input_ids"] == [97, 256, 98]
    assert TOKENIZER.decode([97, 256, 98]) == f"a{END_OF_TEXT}b"
    assert TOKENIZER.decode([97, 256, 98], skip_special_tokens=True) == "ab"
    assert byte_level.decode(np.array([97, 256, 98])) == b"ab"


def test_saved_and_loaded(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "  zwei\r\n\tÄpfel , don't \x00 \U0001f600"
    assert loaded(text)["input_ids"] == list(text.encode())
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert is_byte_tokenizer(loaded)


def test_ids_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.256, got 3\.\.257"):
        byte_level.decode(np.array([3, 257]))
