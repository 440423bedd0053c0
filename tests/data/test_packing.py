"""Documents become one line of tokens, and that becomes blocks; nothing is lost or counted twice."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fla_mesa.data import Corpus, TokenBlocks, byte_tokenizer, tokenize
from fla_mesa.data.packing import IGNORED

BYTES = byte_tokenizer()
EOT = 256


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=8))
def test_tokens_are_the_documents_in_order(documents):
    tokens = tokenize(Corpus(documents), BYTES)
    kept = [document.encode() for document in documents if document]
    assert tokens.ids.tolist() == [token for document in kept for token in (*document, EOT)]
    assert (tokens.documents, tokens.text_bytes) == (len(kept), sum(map(len, kept)))
    by_hand = hashlib.sha256(b"".join(len(document).to_bytes(8, "little") + document for document in kept))
    assert tokens.sha256 == by_hand.hexdigest()


def test_hash_knows_where_documents_end():
    assert tokenize(Corpus(["ab", "c"]), BYTES).sha256 != tokenize(Corpus(["a", "bc"]), BYTES).sha256


def test_a_document_that_spells_the_end_of_text_has_not_ended(bpe):
    assert tokenize(Corpus(["<|endoftext|>"]), BYTES).ids.tolist() == [*b"<|endoftext|>", EOT]
    ids = tokenize(Corpus(["a<eot>b"]), bpe).ids.tolist()
    assert ids.count(bpe.eos_token_id) == 1 and ids[-1] == bpe.eos_token_id
    assert bpe.decode(ids[:-1]) == "a<eot>b"


def test_general_tokenizer(bpe):
    documents = ["the theory", "there the thing, Äpfel"] * 200  # more than one call of the tokenizer
    tokens = tokenize(Corpus(documents), bpe)
    end = bpe.eos_token_id
    by_hand = [token for text in documents for token in (*bpe(text)["input_ids"], end)]
    assert tokens.ids.tolist() == by_hand and tokens.ids.dtype == np.uint16
    assert tokens.bytes_per_token == sum(len(text.encode()) for text in documents) / (len(by_hand) - 400) > 1.3


def test_tokenizer_without_end_of_text_is_refused(bpe):
    from transformers import PreTrainedTokenizerFast

    endless = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer)
    with pytest.raises(ValueError, match="no end-of-text token"):
        tokenize(Corpus(["a"]), endless)


def test_tokens_are_kept_on_disk_by_fingerprint_and_tokenizer(tmp_path, bpe):
    reads = []

    class Counted:
        def __iter__(self):
            reads.append(1)
            return iter(["one", "two"])

    corpus = Corpus(Counted(), fingerprint="abc")
    first, second = tokenize(corpus, BYTES, tmp_path), tokenize(corpus, BYTES, tmp_path)
    assert len(reads) == 1
    assert first.ids.tolist() == second.ids.tolist() == [*b"one", EOT, *b"two", EOT]
    assert (first.documents, first.text_bytes, first.sha256) == (second.documents, second.text_bytes, second.sha256)
    assert first.sha256 == tokenize(Corpus(["one", "two"]), BYTES).sha256
    tokenize(corpus, bpe, tmp_path)
    tokenize(Corpus(Counted(), fingerprint="abd"), BYTES, tmp_path)
    assert len(reads) == 3
    assert not list(tmp_path.glob("*.tmp"))


def test_half_written_tokens_are_written_anew(tmp_path):
    def interrupted():
        yield from ["a"] * 300
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        tokenize(Corpus(interrupted(), fingerprint="x"), BYTES, tmp_path)
    assert not list(tmp_path.iterdir())
    assert tokenize(Corpus(["a"], fingerprint="x"), BYTES, tmp_path).ids.tolist() == [97, EOT]


@settings(deadline=None, max_examples=60)
@given(count=st.integers(0, 60), seq_len=st.integers(2, 17))
def test_blocks_hold_every_token_once(count, seq_len):
    ids = np.arange(1, count + 1, dtype=np.uint16)
    whole = TokenBlocks(ids, seq_len)
    assert len(whole) == count // seq_len
    rows = [row for block in whole for row in [block["input_ids"]]]
    assert [token for row in rows for token in row.tolist()] == ids[: len(whole) * seq_len].tolist()

    with_tail = TokenBlocks(ids, seq_len, keep_tail=True)
    labels = [label for block in with_tail for label in block["labels"].tolist() if label != IGNORED]
    lost = 1 if count % seq_len == 1 else 0  # a lone last token could only be read
    assert labels == ids[: count - lost].tolist()
    for block in with_tail:
        assert block["input_ids"].shape == block["labels"].shape == (seq_len,)
        kept = block["labels"] != IGNORED
        assert (block["input_ids"][kept] == block["labels"][kept]).all() and (block["input_ids"][~kept] == 0).all()


def test_a_token_that_is_not_scored_is_still_read():
    blocks = TokenBlocks(np.array([1, 9, 2, 3, 9], dtype=np.uint16), 4, keep_tail=True, unscored=9)
    first = blocks[0]
    assert first["input_ids"].tolist() == [1, 9, 2, 3] and first["labels"].tolist() == [1, IGNORED, 2, 3]


def test_block_that_predicts_nothing_is_refused():
    with pytest.raises(ValueError, match=r"seq_len: a block needs at least 2 tokens.*got 1"):
        TokenBlocks(np.arange(4), 1)
