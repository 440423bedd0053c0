"""Documents of held-out text, and blocks of their tokens."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from fla_mesa.data import text_files
from fla_mesa.errors import UserError

logger = logging.getLogger(__name__)

STDLIB = "stdlib"


def read_documents(text: object = STDLIB) -> list[str]:
    """The documents to read.

    Args:
        text: "stdlib", the files of Python's standard library that `fla-mesa train` holds out; or the path of a text file (one document),
            of a .jsonl file with a "text" in each line, or of a folder of text files.

    Raises:
        UserError: No such file, nothing in it, or it is not text.
    """
    if not isinstance(text, str) or not text:
        raise UserError(f"held-out text: text must be 'stdlib' or the path of a file or folder, got {text!r}")
    if text == STDLIB:
        _, held_out, _ = text_files.standard_library(say=logger.info).split()
        return list(held_out.documents)
    path = Path(text).expanduser()
    if path.is_dir():
        found = [file for file in text_files.walk(path) if file.suffix.lower() in text_files.SUFFIXES]
        if not found:
            raise UserError(f"held-out text: no text file in the folder {text!r}")
        return list(text_files.read_folder(path, sorted(found)).texts.values())
    if path.suffix != ".jsonl":
        return list(text_files.read_file(path).texts.values())
    documents = [document for document in _json_lines(path) if document]
    if not documents:
        raise UserError(f"held-out text: {text!r} holds no text")
    return documents


def _json_lines(file: Path) -> Iterator[str]:
    # Not splitlines, which also breaks at characters that may stand inside a JSON string.
    for number, line in enumerate(text_files.decode(file).rstrip("\n").split("\n"), start=1):
        try:
            document = json.loads(line)["text"]
            if not isinstance(document, str):
                raise TypeError(f"text is {document!r}")
            yield document
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f"held-out text: line {number} of {str(file)!r} is no JSON object with a 'text' ({error!r})"
            ) from error


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text, without any that the tokenizer would put before or behind it."""
    return cast("list[int]", tokenizer(text, add_special_tokens=False)["input_ids"])


def blocks_of_each(text: object, tokenizer: PreTrainedTokenizerBase, length: int) -> list[list[int]]:
    """All whole blocks of `length` tokens of the documents, each document cut by itself.

    Raises:
        UserError: There is none.
    """
    blocks = []
    for document in read_documents(text):
        ids = token_ids(tokenizer, document)
        blocks += [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    if not blocks:
        raise UserError(f"held-out text: no document has {length} tokens; pass a smaller --metadata positions=")
    return blocks


def random_blocks(text: object, tokenizer: PreTrainedTokenizerBase, length: int, count: int, seed: int) -> np.ndarray:
    """Random whole blocks of the documents joined, int64 ``[count, length]``; some documents are shorter than a long context.

    Raises:
        UserError: There are fewer.
    """
    stream: list[int] = []
    for document in read_documents(text):
        stream += token_ids(tokenizer, document)
        stream += [] if tokenizer.eos_token_id is None else [cast(int, tokenizer.eos_token_id)]
    available = len(stream) // length
    if available < count:
        raise UserError(
            f"held-out text: {len(stream)} tokens hold {available} blocks of {length}; {count} are wanted (sequences)"
        )
    chosen = np.sort(np.random.default_rng(seed).choice(available, size=count, replace=False))
    return np.array(stream[: available * length]).reshape(available, length)[chosen]
