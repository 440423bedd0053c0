"""Streams: every block once, shuffled by the seed, the same after going on anywhere; what is held out is never trained on."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from fla_mesa.data import BlockStream, DataRequest, Splits, Streaming, block_stream, byte_tokenizer, load_data
from fla_mesa.data.tokenizer import decode

SEQ = 16
BUFFER = 12  # blocks; the files below fill some hundred


def quiet(text: str) -> None:
    """Takes what would be printed."""


def text_of(file: int, row: int) -> str:
    return f"file {file} row {row} " + "abcdefg"[row % 7] * (row % 50)


@pytest.fixture(autouse=True)
def few_documents_at_a_time(monkeypatch):
    """So that a file is read in several goes."""
    monkeypatch.setattr(block_stream, "DOCUMENTS_A_CALL", 20)


@pytest.fixture
def folder(tmp_path):
    """Three parquet files of unequal lengths, in groups of rows smaller than a file, and rows without text."""
    for file, count in enumerate((90, 40, 700)):
        texts = [text_of(file, row) if row % 11 else ("" if row % 2 else None) for row in range(1, count + 1)]
        table = pa.table({"id": list(range(count)), "text": texts})
        pq.write_table(table, tmp_path / f"part{file}.parquet", row_group_size=100)
    return tmp_path


def load(spec, held_out=300, buffer=BUFFER, **options) -> Splits:
    streaming = Streaming(shuffle_buffer=buffer, held_out_tokens=held_out)
    return load_data(DataRequest(str(spec), seq_len=SEQ, say=quiet, streaming=streaming, **options))


def stream_of(spec, seed=0, passes=1, rows=1, **options) -> BlockStream:
    return load(spec, **options).train.arranged(seed=seed, passes=passes, rows=rows)


def blocks_of(stream) -> list[list[int]]:
    return [row["input_ids"].tolist() for row in stream]


def all_texts() -> list[str]:
    return [text_of(file, row) for file, count in enumerate((90, 40, 700)) for row in range(1, count + 1) if row % 11]


def test_a_stream_gives_the_tokens_of_every_document_that_is_not_held_out(folder):
    splits = load(folder)
    held_out = decode_documents(splits.validation.ids)
    assert held_out == all_texts()[: len(held_out)] and 300 <= len(splits.validation.ids) < 400
    stream = splits.train.arranged(seed=0, passes=1, rows=1)
    ordered = stream_of(folder, buffer=10**6)  # one window, so that sorting undoes the shuffling
    expected = all_texts()[len(held_out) :]
    tokens = sum(len(text.encode()) + 1 for text in expected)
    blocks = blocks_of(stream)
    assert len(blocks) == tokens // SEQ == len(blocks_of(ordered)) > 5 * BUFFER
    assert (stream.read.tokens, stream.read.documents) == (tokens, len(expected))
    # A window is only another order of neighbouring blocks: all windows together are the same blocks.
    assert sorted(blocks) == sorted(blocks_of(ordered)) and blocks != blocks_of(ordered)
    assert np.bincount(np.concatenate(blocks), minlength=257)[256] in (len(expected), len(expected) - 1)


def decode_documents(ids) -> list[str]:
    ends = np.flatnonzero(ids == 256)
    return [decode(ids[start:end]).decode() for start, end in zip([0, *(ends + 1)], ends, strict=False)]


def test_blocks_are_those_of_data_that_is_read_whole(folder):
    """The same packing and labels: of one file in a stream and read whole."""
    streamed = stream_of(folder / "part1.parquet", validation=str(folder / "part0.parquet"))
    whole = load_data(
        DataRequest(str(folder / "part1.parquet"), seq_len=SEQ, say=quiet, validation=str(folder / "part0.parquet"))
    )
    key = lambda row: (row["input_ids"].tolist(), row["labels"].tolist())  # noqa: E731
    assert sorted(map(key, streamed)) == sorted(key(whole.train[i]) for i in range(len(whole.train)))
    assert any((row["labels"] == -100).any() for row in streamed)  # the end of a document is no target


def test_a_held_out_document_is_left_out_wherever_it_occurs(folder):
    again = pa.table({"id": [0, 1], "text": [text_of(0, 1), "a document of its own"]})
    pq.write_table(again, folder / "part9.parquet")
    splits = load(folder)
    held_out = decode_documents(splits.validation.ids)
    assert text_of(0, 1) in held_out
    stream = splits.train.arranged(seed=0, passes=1, rows=1)
    blocks_of(stream)
    assert stream.read.left_out == len(held_out) + 1
    assert stream.read.documents == len(all_texts()) - len(held_out) + 1


def test_the_seed_is_the_order(folder):
    assert blocks_of(stream_of(folder, seed=1)) == blocks_of(stream_of(folder, seed=1))
    assert blocks_of(stream_of(folder, seed=1)) != blocks_of(stream_of(folder, seed=2))


def test_every_pass_has_an_order_of_its_own(folder):
    once, twice = blocks_of(stream_of(folder)), blocks_of(stream_of(folder, passes=2))
    assert twice[:BUFFER] == once[:BUFFER] and abs(len(twice) - 2 * len(once)) <= 1
    ends = [np.concatenate(blocks).tolist().count(256) for blocks in (once, twice)]
    assert abs(ends[1] - 2 * ends[0]) <= 1
    assert twice[len(once) :] != once


@pytest.mark.parametrize("seen", [0, 4, 12, 52, 100, 400, 900])
def test_going_on_gives_the_very_next_block(folder, seen):
    """Also where the reader is ahead by some blocks, and over the end of a pass; the state goes through JSON."""
    settings = {"seed": 3, "passes": 2, "rows": 4}
    stream = stream_of(folder, **settings)
    blocks = iter(stream)
    for _ in range(seen + 4 if seen else 0):  # a loader reads ahead
        next(blocks)
    state = json.loads(json.dumps(stream.state_after(seen)))
    again = stream_of(folder, **settings)
    again.go_on_after(seen, state)
    rest = list(again)
    assert all(row["input_ids"].tolist() == [0] for row in rest[:seen])
    whole = stream_of(folder, **settings)
    assert blocks_of(rest[seen:]) == blocks_of(whole)[seen:] and len(rest) > seen
    counts = [(read.tokens, read.documents, read.left_out) for read in (again.read, whole.read)]
    assert counts[0] == counts[1]


def test_a_state_holds_less_than_a_window(folder):
    """It is a place and the tokens that filled no block, however many have been seen."""
    stream = stream_of(folder)
    for count, _ in enumerate(stream):
        if count % 10 == 0:
            assert len(json.dumps(stream.state_after(count))) < 1500


def test_only_whole_steps(folder):
    count = len(blocks_of(stream_of(folder)))
    assert len(blocks_of(stream_of(folder, rows=7))) == count // 7 * 7 < count


def test_memory_holds_a_window_not_the_data(folder, monkeypatch):
    """Reading stops as soon as a window is full."""
    stream = stream_of(folder / "part2.parquet")
    read = []
    encode = stream.encode
    stream.encode = lambda texts: read.extend(texts) or encode(texts)
    next(iter(stream))
    assert 0 < len(read) < 100


def test_a_validation_split_of_its_own_is_cut_and_nothing_left_out(folder):
    texts = [f"validation {row} " + "z" * 30 for row in range(50)]
    pq.write_table(pa.table({"text": texts, "id": list(range(50))}), folder / "validation.parquet")
    splits = load(folder)
    assert decode_documents(splits.validation.ids) == texts[: len(decode_documents(splits.validation.ids))]
    assert len(splits.validation.ids) < 400 and "own validation split" in splits.facts["held_out"]
    stream = splits.train.arranged(seed=0, passes=1, rows=1)
    blocks_of(stream)
    assert stream.read.documents == len(all_texts())


def test_json_lines_and_another_tokenizer(tmp_path, bpe):
    lines = [{"body": text, "n": 1} for text in all_texts()]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    bpe.save_pretrained(tmp_path / "tokenizer")
    splits = load(tmp_path / "a.jsonl", tokenizer=str(tmp_path / "tokenizer"))
    assert splits.vocab_size == len(bpe) and isinstance(next(iter(splits.train))["input_ids"], torch.Tensor)
    assert bpe.decode(splits.validation.ids).startswith(f"{all_texts()[0]}<eot>")
    with pytest.raises(ValueError, match=r"text_column: .* no text column 'boby'; it has body"):
        load(tmp_path / "a.jsonl", text_column="boby")


def test_a_hash_that_knows_the_files_and_what_is_held_out(folder):
    first = load(folder).sha256
    assert load(folder).sha256 == first != load(folder, held_out=500).sha256
    pq.write_table(pa.table({"text": ["more"], "id": [1]}), folder / "part3.parquet")
    assert load(folder).sha256 != first


def test_too_little_says_how_many_tokens_there_are(folder):
    tokens = sum(len(text.encode()) + 1 for text in all_texts())
    with pytest.raises(
        ValueError, match=rf"ends after {tokens:,} tokens, too few to hold out 1,000,000 \(held_out_tokens\)"
    ):
        load(folder, held_out=1_000_000)


def test_what_cannot_be_streamed(tmp_path):
    (tmp_path / "a.txt").write_text("text\n" * 100)
    for spec in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(ValueError, match=r"streaming: reads hub datasets and .*\.parquet"):
            load(spec)
    for spec in ("stdlib", "mqar"):
        with pytest.raises(ValueError, match=f"streaming: does not apply to --data {spec}"):
            load(spec)
    with pytest.raises(ValueError, match="no such file or folder"):
        load(tmp_path / "none.parquet")
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer).save_pretrained(tmp_path / "endless")
    pq.write_table(pa.table({"text": all_texts()}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no end-of-text token"):
        load(tmp_path / "a.parquet", tokenizer=str(tmp_path / "endless"))


def test_a_data_set_of_the_hub_without_network():
    said = "'someone/corpus' is no source .* could not be reached .*: connect to the network and unset HF_HUB_OFFLINE"
    with pytest.raises(
        ValueError, match=rf"{said}; or copy its parquet or JSON files here and name their folder in --data"
    ):
        load("someone/corpus")
    with pytest.raises(ValueError, match=rf"{said}, once, after which HF_HOME keeps the data; or copy"):
        load_data(DataRequest("someone/corpus", say=quiet))


def test_a_tokenizer_of_the_hub_without_network(tmp_path):
    said = "tokenizer: 'some_tokenizer' is no folder here, .* could not be reached: connect to the network and "
    said += "unset HF_HUB_OFFLINE, once, .*HF_HOME keeps it; or save it where there is a network, "
    said += ".*copy the folder here and name it in --tokenizer"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a b c"}\n')
    for streaming in (None, Streaming()):
        with pytest.raises(ValueError, match=f"^{said}$"):
            load_data(DataRequest(str(rows), tokenizer="some_tokenizer", streaming=streaming, say=quiet))
        # Both at once, so that one journey to the network is enough.
        with pytest.raises(
            ValueError, match=rf"^{said}\ndata: 'someone/corpus' is no source .* name their folder in --data$"
        ):
            load_data(DataRequest("someone/corpus", tokenizer="some_tokenizer", streaming=streaming, say=quiet))
    with pytest.raises(ValueError, match="cannot be loaded") as error:  # a folder that holds none is another mistake
        load_data(DataRequest(str(rows), tokenizer=str(tmp_path), say=quiet))
    assert "network" not in str(error.value)
