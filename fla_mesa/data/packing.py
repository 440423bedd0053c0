"""Turns text into tokens and blocks: documents are joined by an end-of-text token and cut to equal lengths."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from fla_mesa.data import tokenizer as byte_level
from fla_mesa.errors import UserError

DOCUMENTS_A_CALL = 256  # fast tokenizers spread one call over the cores
IGNORED = -100  # the label that transformers leaves out of the loss


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order, read as often as needed.

    `fingerprint` identifies them without reading them; where it is given, their tokens are kept on disk between runs.
    """

    documents: Iterable[str]
    fingerprint: str | None = None


@dataclass(frozen=True)
class Tokens:
    """A corpus as one sequence of tokens: each document followed by an end-of-text token."""

    ids: np.ndarray  # [N], uint16 or uint32
    documents: int  # empty ones left out
    text_bytes: int  # UTF-8, end-of-text tokens not counted
    sha256: str  # of every document's length (8 bytes, little-endian) and UTF-8 bytes, in order

    @property
    def bytes_per_token(self) -> float:
        """Mean number of UTF-8 bytes per token of text (1 for the byte tokenizer)."""
        return self.text_bytes / max(len(self.ids) - self.documents, 1)


Encoder = Callable[[Sequence[str]], list[np.ndarray]]  # documents to the tokens of each, its end-of-text token last


def encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Function that turns documents into tokens.

    Raises:
        UserError: The tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        name = tokenizer.name_or_path
        raise UserError(f"tokenizer: {name!r} has no end-of-text token (eos_token) to put between documents")
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    end = np.asarray([tokenizer.eos_token_id], dtype=dtype)
    if byte_level.is_byte_tokenizer(tokenizer):
        return lambda documents: [np.concatenate([byte_level.encode(text.encode()), end]) for text in documents]

    def encode(documents: Sequence[str]) -> list[np.ndarray]:
        # split_special_tokens: a document that spells out a special token has not ended there.
        encoded = tokenizer(list(documents), add_special_tokens=False, split_special_tokens=True, verbose=False)
        return [np.concatenate([np.asarray(ids, dtype=dtype), end]) for ids in encoded["input_ids"]]

    return encode


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    texts = (document for document in documents if document)
    while batch := list(islice(texts, DOCUMENTS_A_CALL)):
        yield batch


class _Counter:
    """Totals for `Tokens`, gathered while the documents pass."""

    def __init__(self) -> None:
        self.documents = 0
        self.text_bytes = 0
        self._digest = hashlib.sha256()

    def add(self, document: str) -> None:
        data = document.encode()
        self.documents += 1
        self.text_bytes += len(data)
        self._digest.update(len(data).to_bytes(8, "little"))
        self._digest.update(data)

    def result(self) -> dict:
        return {"documents": self.documents, "text_bytes": self.text_bytes, "sha256": self._digest.hexdigest()}


def _pieces(corpus: Corpus, encode: Encoder, counter: _Counter) -> Iterator[np.ndarray]:
    """The tokens of each document of a corpus, in order."""
    for batch in _batches(corpus.documents):
        for document in batch:
            counter.add(document)
        yield from encode(batch)


def tokenize(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, cache: Path | None = None) -> Tokens:
    """All tokens of `corpus`; cached under `cache` for the next run if the corpus has a fingerprint.

    Raises UserError for a tokenizer without an end-of-text token.
    """
    encode = encoder(tokenizer)
    if cache is not None and corpus.fingerprint is not None:
        return _tokenize_on_disk(corpus, tokenizer, encode, cache)
    counter = _Counter()
    pieces = list(_pieces(corpus, encode, counter))
    ids = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint16)
    return Tokens(ids, **counter.result())


def _tokenize_on_disk(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, encode: Encoder, cache: Path) -> Tokens:
    """As `tokenize`, but the ids are a memory-mapped file, shared by processes and kept between runs."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = fast.to_str() if fast is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    key = hashlib.sha256(f"{corpus.fingerprint}\n{tokenizer.eos_token_id}\n{vocabulary}".encode()).hexdigest()[:32]
    ids_file, facts_file = cache / f"{key}.bin", cache / f"{key}.json"
    if not facts_file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        counter, dtype = _Counter(), "uint16"
        unfinished = cache / f"{key}.{os.getpid()}.tmp"
        try:
            with unfinished.open("wb") as file:
                for ids in _pieces(corpus, encode, counter):
                    dtype = ids.dtype.name
                    ids.tofile(file)
            unfinished.replace(ids_file)
            unfinished.write_text(json.dumps({"dtype": dtype, **counter.result()}))
            unfinished.replace(facts_file)  # last: its presence says that the ids are whole
        finally:
            unfinished.unlink(missing_ok=True)
    facts = json.loads(facts_file.read_text())
    dtype = np.dtype(facts.pop("dtype"))
    empty = ids_file.stat().st_size == 0  # nothing can be mapped
    return Tokens(np.empty(0, dtype) if empty else np.memmap(ids_file, dtype=dtype, mode="r"), **facts)


class TokenBlocks(Dataset):
    """`ids` cut into blocks of `seq_len` tokens: rows `{"input_ids", "labels"}`, both int64 `[seq_len]` and equal.

    The model shifts the labels, so the first token of a block is read but not predicted. What is left over at the end
    is dropped, or, with `keep_tail`, filled up with `pad_id` under the label -100. `unscored` is a token that is read
    but never a target: its label is -100.
    """

    def __init__(
        self, ids: np.ndarray, seq_len: int, *, keep_tail: bool = False, pad_id: int = 0, unscored: int | None = None
    ):
        if seq_len < 2:
            raise UserError(f"seq_len: a block needs at least 2 tokens, one to read and one to predict, got {seq_len}")
        self.ids, self.seq_len, self.pad_id, self.unscored = ids, seq_len, pad_id, unscored
        whole, rest = divmod(len(ids), seq_len)
        self._length = whole + (keep_tail and rest >= 2)  # a lone last token would predict nothing

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self._length:
            raise IndexError(f"block {index} of {self._length}")
        block = torch.from_numpy(self.ids[index * self.seq_len : (index + 1) * self.seq_len].astype(np.int64))
        labels = block.clone() if self.unscored is None else block.masked_fill(block == self.unscored, IGNORED)
        missing = self.seq_len - len(block)
        return {
            "input_ids": torch.cat([block, block.new_full((missing,), self.pad_id)]),
            "labels": torch.cat([labels, labels.new_full((missing,), IGNORED)]),
        }


def describe(tokens: Tokens) -> dict:
    """The description of a split in reports."""
    facts = asdict(tokens)
    return {"tokens": len(facts.pop("ids")), **facts}
