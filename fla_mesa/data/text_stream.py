"""Streams of text larger than memory and disk: parquet and JSON files and hub datasets, read during training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fla_mesa.data import tables, text_files
from fla_mesa.data.block_stream import BlockStream, document_key
from fla_mesa.data.packing import DOCUMENTS_A_CALL, Corpus, Encoder, TokenBlocks, describe, encoder, tokenize
from fla_mesa.data.request import DataRequest, Splits
from fla_mesa.data.text import TEXT_SEQ_LEN, on_disk, with_tokenizer
from fla_mesa.errors import UserError

if TYPE_CHECKING:
    from datasets import IterableDataset


@dataclass(frozen=True)
class TextColumn:
    """A text column in a dataset's files, each of which can be opened repeatedly.

    Attributes:
        rows: All files, by `datasets`.
        name: Of the column.
        identity: What tells these files from others without their being read.
    """

    rows: IterableDataset
    name: str
    identity: str

    def __len__(self) -> int:
        return self.rows.num_shards

    def open(self, index: int) -> IterableDataset:
        """One file from its beginning."""
        return self.rows.shard(num_shards=len(self), index=index)

    def documents(self) -> Iterator[str]:
        """All of them, in the files' own order."""
        for batch in self.rows.iter(batch_size=DOCUMENTS_A_CALL):
            yield from (text for text in batch[self.name] if text)


@dataclass(frozen=True)
class Streams:
    """The splits of a dataset."""

    train: TextColumn
    validation: TextColumn | None


def load_stream(request: DataRequest) -> Splits:
    """The loader of all streamed data: reads the validation part and starts the training part.

    Raises:
        UserError: A file or an option is at fault, or there is too little text; the message says how many tokens there were.
    """
    assert request.streaming is not None
    seq_len = TEXT_SEQ_LEN if request.seq_len is None else request.seq_len
    tokenizer, found = with_tokenizer(request.tokenizer, lambda: _open(request.spec, request))
    encode = encoder(tokenizer)
    wanted = request.streaming.held_out_tokens
    if request.validation is not None:
        other = _open(request.validation, request)
        column, how = other.validation or other.train, request.validation
    elif found.validation is not None:
        column, how = found.validation, "the data's own validation split"
    else:
        column, how = found.train, f"the first documents, {wanted:,} tokens"
    documents, enough = _first(column, encode, wanted)
    from_training = column is found.train
    validation = tokenize(Corpus(documents), tokenizer)
    unscored = None if request.predict_end_of_text else cast("int | None", tokenizer.eos_token_id)
    validation_blocks = TokenBlocks(validation.ids, seq_len, keep_tail=True, unscored=unscored)
    if not len(validation_blocks) or (from_training and not enough):
        raise UserError(
            f"data: {request.spec} ends after {len(validation.ids):,} tokens, too few to hold out {wanted:,} (held_out_tokens) and to "
            f"train on blocks of {seq_len} (seq_len)"
        )
    identity = f"{found.train.identity} {validation.sha256}"
    sha256 = hashlib.sha256(identity.encode()).hexdigest()
    request.say(
        f"data: {request.spec}: a stream of {len(found.train):,} files; {len(validation.ids):,} tokens of "
        f"{validation.documents:,} documents held out ({how}); sha256 of these and of the list of files {sha256[:16]}"
    )
    return Splits(
        train=BlockStream(
            found.train,
            encode,
            seq_len,
            unscored=unscored,
            held_out=frozenset(map(document_key, documents)) if from_training else frozenset(),
            window=request.streaming.shuffle_buffer,
        ),
        validation=validation_blocks,
        vocab_size=len(tokenizer),
        seq_len=seq_len,
        sha256=sha256,
        tokenizer=tokenizer,
        bytes_per_token=validation.bytes_per_token,
        facts={"held_out": how, "files": len(found.train), "validation": describe(validation)},
    )


def _first(column: TextColumn, encode: Encoder, wanted: int) -> tuple[list[str], bool]:
    """The first documents with `wanted` tokens, or all documents, and whether there were enough."""
    documents, tokens = [], 0
    for text in column.documents():
        documents.append(text)
        tokens += len(encode([text])[0])
        if tokens >= wanted:
            return documents, True
    return documents, False


# Opening


def _open(spec: str, request: DataRequest) -> Streams:
    """Opens the files. Raises UserError naming what is wrong."""
    path = on_disk(spec, request)
    if path is None:
        splits, identity = tables.load_hub(spec, request.config, streaming=True), f"{spec} {request.config}"
        return _columns(splits, identity, request.text_column, spec)
    root = path if path.is_dir() else path.parent
    files = [
        file
        for file in (text_files.walk(path) if path.is_dir() else [path])
        if tables.suffix_of(file) in tables.SUFFIXES
    ]
    if not files:
        kinds = " ".join(sorted(tables.SUFFIXES))
        raise UserError(f"streaming: reads hub datasets and {kinds} files; {path} is not and does not contain one")
    builder, by_split = tables.sort_files(root, files, whole=False)
    sizes = {split: [Path(file).stat().st_size for file in named] for split, named in by_split.items()}
    splits = tables.load(builder, spec, data_files=by_split, streaming=True)
    return _columns(splits, f"{builder} {sizes}", request.text_column, spec)


def _columns(splits, identity: str, wanted: str | None, where: str) -> Streams:
    train, validation = tables.training_and_validation(cast("dict[str, IterableDataset]", splits), where)
    first = next(iter(train), None)
    if first is None:
        raise UserError(f"data: {where} is empty")
    strings = (
        tables.columns_of_text(train.features)
        if train.features
        else [k for k, v in first.items() if isinstance(v, str)]
    )
    name = tables.text_column(strings, wanted, where)
    identity = f"{identity} {train.num_shards} {name}"
    held = None if validation is None else TextColumn(validation, name, identity)
    return Streams(TextColumn(train, name, identity), held)
