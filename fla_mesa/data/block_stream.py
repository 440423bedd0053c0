"""Blocks of tokens read, tokenized and shuffled during training, with positions to resume from.

    files, in a new order each pass  ->  documents  ->  tokens  ->  windows of blocks, each shuffled  ->  blocks

`datasets` reads on exactly where its `state_dict` says, except that its own shuffle buffer loses what it holds. Here the order is fixed by
the seed alone, a window at a time, so that going on takes a few numbers from where the window began and at most one window read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import IterableDataset

from fla_mesa.data.packing import DOCUMENTS_A_CALL, Encoder, TokenBlocks
from fla_mesa.errors import UserError


class Rows(Protocol):
    """One file of documents: the part of `datasets.IterableDataset` that is used here."""

    def iter(self, batch_size: int) -> Iterator[dict[str, list[str | None]]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> None: ...


class Files(Protocol):
    """Documents in files, each of which can be opened repeatedly."""

    @property
    def name(self) -> str: ...  # of the column of text

    def __len__(self) -> int: ...
    def open(self, index: int) -> Rows: ...


def document_key(text: str) -> bytes:
    """Hash that identifies a document wherever it occurs."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(frozen=True)
class Place:
    """Where a window begins, in values that JSON can hold.

    Attributes:
        window, blocks: How many of them came before.
        tokens, documents, left_out: Read before, in documents that are not held out; and how many were passed over that are.
        passes: Over all files, completed.
        file: Which file of this pass is being read, in the pass's own order.
        state: Where in it, as `datasets` says; None for its beginning.
        rest: Tokens that have been read and filled no block yet.
    """

    window: int = 0
    blocks: int = 0
    tokens: int = 0
    documents: int = 0
    left_out: int = 0
    passes: int = 0
    file: int = 0
    state: dict[str, Any] | None = None
    rest: list[int] = field(default_factory=list)


class BlockStream(IterableDataset):
    """Blocks like those of :class:`TokenBlocks`, without a length.

    Args:
        files: The documents.
        encode: Makes their tokens.
        seq_len, unscored: As of TokenBlocks.
        held_out: Keys of documents that are passed over wherever they occur.
        window: Blocks that are shuffled together, at least; with more, fewer neighbours in the data are neighbours in training.
        seed: Sets the order of files and blocks.
        passes: How often to go over the files.
        rows: Blocks come in whole groups of so many, which a step of all processes takes; what fills none at the end is left out.
    """

    def __init__(
        self,
        files: Files,
        encode: Encoder,
        seq_len: int,
        *,
        unscored: int | None,
        held_out: frozenset[bytes] = frozenset(),
        window: int = 1024,
        seed: int = 0,
        passes: int = 1,
        rows: int = 1,
    ):
        self.files, self.encode, self.seq_len, self.unscored, self.held_out = files, encode, seq_len, unscored, held_out
        self.window, self.seed, self.passes, self.rows = window, seed, passes, rows
        self._start, self._skipped = Place(), 0
        self._begun: list[Place] = []  # windows from which reading may have to go on, in order
        self.read = Place()  # how far reading is

    def arranged(self, *, seed: int, passes: int, rows: int) -> BlockStream:
        """The same documents in another order, for more passes, or in groups of another size."""
        options = {"unscored": self.unscored, "held_out": self.held_out, "window": self.window}
        return BlockStream(self.files, self.encode, self.seq_len, **options, seed=seed, passes=passes, rows=rows)

    def state_after(self, blocks: int) -> dict[str, Any]:
        """The argument of :meth:`go_on_after` that skips the first `blocks`; must be asked for increasing numbers of blocks."""
        while len(self._begun) > 1 and self._begun[1].blocks <= blocks:
            self._begun.pop(0)
        return asdict(self._begun[0] if self._begun else self._start)

    def go_on_after(self, blocks: int, state: dict[str, Any]) -> None:
        """Yields `blocks` empty rows first, for a trainer that skips what it has seen by reading it."""
        self._start, self._skipped = Place(**state), blocks

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Raises UserError if there is not one group of rows."""
        nothing = torch.zeros(1, dtype=torch.long)
        for _ in range(self._skipped):
            yield {"input_ids": nothing, "labels": nothing}
        group: list[dict[str, torch.Tensor]] = []
        given = self._skipped > 0
        self._begun = []
        for begin, ids in self._windows():
            self._begun.append(begin)
            blocks = TokenBlocks(ids, self.seq_len, unscored=self.unscored)
            order = np.random.default_rng([self.seed, 1, begin.window]).permutation(len(blocks))
            for index in order[max(self._skipped - begin.blocks, 0) :]:
                group.append(blocks[index])
                if len(group) == self.rows:
                    yield from group
                    given = True
                    group.clear()
        if not given:
            raise UserError(
                f"data: the stream ends after {self.read.tokens:,} tokens, too few for a step of {self.rows} x {self.seq_len} (seq_len)"
            )

    def _windows(self) -> Iterator[tuple[Place, np.ndarray]]:
        """The start of each window and its tokens, in whole blocks."""
        begin = self.read = self._start
        pieces, held = [np.asarray(begin.rest, dtype=np.uint32)] if begin.rest else [], len(begin.rest)
        for texts, at in self._documents(begin):
            new = self.encode(texts) if texts else []
            pieces += new
            held += (read := sum(map(len, new)))
            self.read = at = replace(at, tokens=self.read.tokens + read)
            whole = held // self.seq_len
            if whole >= self.window:
                ids = np.concatenate(pieces)
                yield begin, ids[: whole * self.seq_len]
                ids = ids[whole * self.seq_len :]
                begin = replace(at, window=begin.window + 1, blocks=begin.blocks + whole, rest=ids.tolist())
                pieces, held = [ids], len(ids)
        if whole := held // self.seq_len:
            yield begin, np.concatenate(pieces)[: whole * self.seq_len]

    def _documents(self, at: Place) -> Iterator[tuple[list[str], Place]]:
        """Documents from a place on, in batches, each with the place behind it."""
        for passed in range(at.passes, self.passes):
            order = np.random.default_rng([self.seed, 0, passed]).permutation(len(self.files))
            for file in range(at.file, len(order)):
                rows = self.files.open(int(order[file]))
                if at.state is not None:
                    rows.load_state_dict(at.state)
                for batch in rows.iter(batch_size=DOCUMENTS_A_CALL):
                    found = [text for text in batch[self.files.name] if text]
                    texts = [text for text in found if document_key(text) not in self.held_out]
                    at = replace(
                        at,
                        documents=at.documents + len(texts),
                        left_out=at.left_out + len(found) - len(texts),
                        passes=passed,
                        file=file,
                        state=rows.state_dict(),
                    )
                    yield texts, at
                at = replace(at, state=None)
            at = replace(at, file=0)
