"""What `--data` may name, what is held out of it, and every way in which it can be wrong."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fla_mesa.data import (
    DataRequest,
    Splits,
    byte_tokenizer,
    load_data,
    register_source,
    source_names,
    sources,
    synthetic,
)
from fla_mesa.data.holdout import ENOUGH, FRACTION, cut_tail, fraction_of, held_out_names
from fla_mesa.data.text_files import standard_library
from fla_mesa.data.tokenizer import decode


def quiet(text: str) -> None:
    """Takes what would be printed."""


def load(spec, seq_len=8, say=quiet, **options) -> Splits:
    return load_data(DataRequest(spec=str(spec), seq_len=seq_len, say=say, **options))


def texts_of(blocks) -> list[str]:
    """The documents behind blocks of bytes."""
    ends = [index for index, token in enumerate(blocks.ids) if token == 256]
    starts = [0, *(end + 1 for end in ends)]
    return [decode(blocks.ids[start:end]).decode() for start, end in zip(starts, ends, strict=False)]


def rows(count: int) -> list[str]:
    return [f"row {index}: " + "x" * (index % 7) for index in range(count)]


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


# Sources


def test_standard_library_is_deterministic_and_says_what_it_read():
    said: list[str] = []
    first = load_data(DataRequest(say=said.append))
    again = load_data(DataRequest(say=quiet))
    assert first.sha256 == again.sha256
    facts = first.facts
    total = facts["train"]["text_bytes"] + facts["validation"]["text_bytes"]
    documents = facts["train"]["documents"] + facts["validation"]["documents"]
    assert total > 5_000_000 and documents > 300
    assert f"{documents:,} documents" in said[-1] and f"{total:,} bytes" in said[-1] and first.sha256[:16] in said[-1]
    assert 0.02 < facts["validation"]["text_bytes"] / total < 0.10
    assert (first.vocab_size, first.seq_len, first.bytes_per_token) == (257, 256, 1.0)
    assert set(first.special_ids.values()) == {256}


def test_standard_library_leaves_out_tests_and_foreign_packages(tmp_path):
    for name in ("argparse.py", "json/decoder.py", "test/bad.py", "json/tests/t.py", "site-packages/x.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(standard_library(tmp_path, quiet).texts) == ["argparse.py", "json/decoder.py"]
    with pytest.raises(ValueError, match="does not include the source"):
        standard_library(tmp_path / "json" / "tests" / "none", quiet)


def test_one_text_file_holds_out_its_tail(tmp_path):
    lines = [f"line {index}\n" for index in range(100)]
    file = tmp_path / "book.anything"
    file.write_text("".join(lines))
    splits = load(file)
    (train,), (validation,) = texts_of(splits.train), texts_of(splits.validation)
    assert train + validation == "".join(lines)
    assert train.endswith("\n") and 0.03 < len(validation) / len(train) < 0.06


@pytest.mark.parametrize("text", ["", "a", "no line break at all" * 10, "\n" * 40, "last\n"])
def test_cut_tail_loses_nothing(text):
    head, tail = cut_tail(text)
    assert head + tail == text and len(tail) <= len(text) * FRACTION + 1


def test_folder_holds_out_whole_files_by_their_path(tmp_path):
    names = [f"part{index % 3}/file{index}.txt" for index in range(150)]
    random.Random(0).shuffle(names)
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"this is {name}")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_text("not read")
    (tmp_path / "empty.txt").write_text("")
    said: list[str] = []
    splits = load(tmp_path, say=said.append)
    train, validation = texts_of(splits.train), texts_of(splits.validation)
    held_out = {name for name in names if fraction_of(name) < FRACTION}
    assert held_out and set(validation) == {f"this is {name}" for name in held_out}
    assert train == [f"this is {name}" for name in sorted(names) if name not in held_out]
    assert any(".png 1" in line for line in said)


def test_adding_a_file_moves_no_other():
    names = [f"{index}.txt" for index in range(200)]
    assert held_out_names(names) == held_out_names([*names, "new.txt"]) - {"new.txt"}
    assert held_out_names(["only.txt"]) == {"only.txt"}


def test_few_files_each_give_their_tail(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text((name * 9 + "\n") * 40)
    splits = load(tmp_path)
    assert [set(text) for text in texts_of(splits.train)] == [{"a", "\n"}, {"b", "\n"}]
    assert [set(text) for text in texts_of(splits.validation)] == [{"a", "\n"}, {"b", "\n"}]


def test_parquet_and_json_hold_out_their_last_rows(tmp_path):
    documents = rows(100)
    write_parquet(tmp_path / "a.parquet", text=documents, number=list(range(100)))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in documents))
    (tmp_path / "c.json").write_text(json.dumps([{"text": text, "source": "x"} for text in documents]))
    for name in ("a.parquet", "b.jsonl", "c.json"):
        splits = load(tmp_path / name)
        assert texts_of(splits.train) == documents[:95] and texts_of(splits.validation) == documents[95:], name


def test_few_rows_each_give_their_tail(tmp_path):
    splits = load(write_parquet(tmp_path / "few.parquet", text=["word " * 100] * (ENOUGH - 1)))
    assert len(texts_of(splits.validation)) == ENOUGH - 1


def test_folder_of_tables_with_its_own_splits(tmp_path):
    (tmp_path / "data").mkdir()
    for split, start in (("train-0", 0), ("train-1", 20), ("validation-0", 40), ("test-0", 50)):
        texts = [f"{split} {index}" for index in range(start, start + 20)]
        write_parquet(tmp_path / "data" / f"{split}.parquet", text=texts)
    (tmp_path / "README.md").write_text("about")
    splits = load(tmp_path)
    assert len(texts_of(splits.train)) == 40 and all(text.startswith("train") for text in texts_of(splits.train))
    assert all(text.startswith("validation") for text in texts_of(splits.validation))
    assert "own validation split" in splits.facts["held_out"]


def test_text_column(tmp_path):
    file = write_parquet(tmp_path / "two.parquet", title=rows(30), body=[text + " body" for text in rows(30)])
    with pytest.raises(ValueError, match=r"text_column: .*two.parquet .*title, body.*--text_column"):
        load(file)
    assert texts_of(load(file, text_column="body").train)[0].endswith(" body")
    with pytest.raises(ValueError, match=r"text_column: .*no text column 'boby'; it has title, body"):
        load(file, text_column="boby")
    with pytest.raises(ValueError, match="none to use instead"):
        load(write_parquet(tmp_path / "none.parquet", number=[1, 2, 3]))


def test_validation_data_of_its_own(tmp_path):
    (tmp_path / "train.txt").write_text("all of this is for training\n" * 20)
    write_parquet(tmp_path / "held.parquet", text=rows(30))
    splits = load(tmp_path / "train.txt", validation=str(tmp_path / "held.parquet"))
    assert texts_of(splits.train) == [(tmp_path / "train.txt").read_text()]
    assert texts_of(splits.validation) == rows(30)
    other = load(tmp_path / "train.txt", validation=str(tmp_path / "train.txt"))
    assert other.sha256 != splits.sha256


def test_tokenizer_from_a_folder(tmp_path, bpe):
    bpe.save_pretrained(tmp_path / "tokenizer")
    file = tmp_path / "text.txt"
    file.write_text("the theory of the thing there\n" * 200)
    splits = load(file, tokenizer=str(tmp_path / "tokenizer"))
    validation = splits.validation
    assert splits.vocab_size == len(bpe) and splits.bytes_per_token > 1.5
    assert splits.special_ids == {"bos_token_id": None, "eos_token_id": bpe.eos_token_id, "pad_token_id": None}
    text_bytes = splits.facts["validation"]["text_bytes"]
    assert splits.bytes_per_token * (len(validation.ids) - 1) == pytest.approx(text_bytes)
    with pytest.raises(ValueError, match=r"tokenizer: '.*nothing.*' cannot be loaded"):
        load(file, tokenizer=str(tmp_path / "nothing"))


def test_named_sources_come_first(monkeypatch):
    monkeypatch.setattr(sources, "_REGISTERED", {})
    made = load_data(DataRequest(seq_len=8, say=quiet))
    seen = []

    @register_source("recall")
    def loader(request):
        request.reject("tokenizer")
        seen.append(request)
        return made

    assert source_names() == ["stdlib", *synthetic.suites(), "recall"]
    assert load_data(DataRequest("recall:pairs=4")) is made
    assert seen[0].spec == "recall:pairs=4"
    with pytest.raises(ValueError, match="tokenizer: does not apply to --data recall, got 'bytes'"):
        load_data(DataRequest("recall", tokenizer="bytes"))
    for taken in ("recall", "stdlib", "mqar"):
        with pytest.raises(ValueError, match="is already a source"):
            register_source(taken)(loader)


def test_every_suite_is_a_source():
    splits = load_data(DataRequest("mqar:vocab_size=64,length=16,num_pairs=2,train=50", say=quiet))
    row = splits.train[0]
    assert set(row) == {"input_ids", "labels"} and row["input_ids"].shape == (16,) and splits.vocab_size == 64
    assert splits.bytes_per_token is None
    assert {"mqar", "regbench", "mad-compression"} <= set(source_names())


# Errors


def test_missing_file():
    for spec in ("nowhere/at/all.txt", "./nothing", "/no/such/folder", "missing.parquet"):
        with pytest.raises(ValueError, match="no such file or folder"):
            load(spec)


def test_hub_name_offline_says_so():
    with pytest.raises(ValueError, match=r"'someone/corpus' is no source .* hub could not give"):
        load("someone/corpus")


def test_empty_files(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("empty.txt", "empty.jsonl"):
        with pytest.raises(ValueError, match=f"{name}: the file is empty"):
            load(tmp_path / name)
    with pytest.raises(ValueError, match=r"none.parquet: the file has no rows"):
        load(write_parquet(tmp_path / "none.parquet", text=pa.array([], pa.string())))
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ValueError, match="folder: the folder has no file of a known type"):
        load(folder)
    (folder / "a.txt").write_text("")
    with pytest.raises(ValueError, match="all 1 text files in it are empty"):
        load(folder)


def test_undecodable_files_are_named_with_the_offset(tmp_path):
    good = b"first line\n" * 1000
    (tmp_path / "bad.txt").write_bytes(good + b"gr\xfc\xdfe")
    with pytest.raises(ValueError, match=r"bad\.txt: not UTF-8 text: byte 0xfc at offset 11002"):
        load(tmp_path / "bad.txt")
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "ok"}\n' * 10 + b'{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl: not UTF-8 text: byte 0xff at offset 160"):
        load(tmp_path / "bad.jsonl")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "good.txt").write_bytes(good)
    (folder / "wrong.txt").write_bytes(b"\x80")
    with pytest.raises(ValueError, match=r"wrong\.txt: .* 0x80 at offset 0"):
        load(folder)


def test_broken_tables_are_named(tmp_path):
    (tmp_path / "cut.parquet").write_bytes(write_parquet(tmp_path / "x.parquet", text=rows(30)).read_bytes()[:-20])
    (tmp_path / "broken.json").write_text('{"text": "a"}\n{"text": ')
    for name in ("cut.parquet", "broken.json"):
        with pytest.raises(ValueError, match=name):
            load(tmp_path / name)
    (tmp_path / "both").mkdir()
    write_parquet(tmp_path / "both" / "a.parquet", text=rows(3))
    (tmp_path / "both" / "b.json").write_text("{}")
    with pytest.raises(ValueError, match="both holds both parquet and JSON files"):
        load(tmp_path / "both")


def test_unreadable_file(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    file = tmp_path / "secret.txt"
    file.write_text("x")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ValueError, match=r"secret\.txt: cannot be read: Permission denied"):
        load(file)


def test_too_little_text_for_a_block(tmp_path):
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(ValueError, match="6 tokens of training text are too few for a block of 64"):
        load(tmp_path / "short.txt", seq_len=64, validation=str(tmp_path / "short.txt"))


def test_configuration_of_what_has_none(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 1000)
    with pytest.raises(ValueError, match=r"data_config: .* is not a hub dataset.* got 'en'"):
        load(tmp_path / "a.txt", config="en")
    with pytest.raises(ValueError, match=r"text_column: .* is plain text and has no columns, got 'text'"):
        load(tmp_path / "a.txt", text_column="text")


def test_byte_tokenizer_saved_by_a_run_is_taken_for_what_it_is(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "run")
    (tmp_path / "a.txt").write_text("abc\n" * 100)
    assert load(tmp_path / "a.txt", tokenizer=str(tmp_path / "run")).bytes_per_token == 1.0
