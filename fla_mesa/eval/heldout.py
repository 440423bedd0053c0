"""Held-out text for bits per byte and for loss by position."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from fla_mesa.data import text_files
from fla_mesa.errors import UserError
from fla_mesa.eval.checkpoint import tokenizer_for

logger = logging.getLogger(__name__)


STDLIB = "stdlib"


def read_documents(text: object = STDLIB) -> list[str]:
    """The documents to read.

    Args:
        text: "stdlib", the files of Python's standard library that `fla-mesa train` holds out; or the path of a text file (one document),
            of a .jsonl file with a "text" in each line, or of a folder of text files.

    Raises:
        ValueError: No such file, nothing in it, or it is not text.
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


def documents(**settings: Any) -> dict[str, datasets.Dataset]:
    """lm-eval's `custom_dataset`: it passes all of --metadata and --model_args, of which `text` is read.

    Where these name a tokenizer (`tokenizer`, or else `pretrained`), each document comes with the number of its tokens.
    """
    columns: dict[str, list] = {"text": read_documents(settings.get("text", STDLIB))}
    if settings.get("tokenizer") or settings.get("pretrained"):
        tokenizer = tokenizer_for(settings, "held-out text")
        columns["tokens"] = [len(ids) for ids in tokenizer(columns["text"], add_special_tokens=False)["input_ids"]]
    return {"test": datasets.Dataset.from_dict(columns)}


def scores(document: dict[str, Any], results: list[float]) -> dict[str, tuple[float, int]]:
    """lm-eval's `process_results`: the log-likelihood of a text beside its size, for perplexities of a byte and of a token."""
    size = len(document["text"].encode())
    found = {"byte_perplexity": (results[0], size), "bits_per_byte": (results[0], size)}
    return found | ({"token_perplexity": (results[0], document["tokens"])} if "tokens" in document else {})


def token_blocks(settings: dict[str, Any], length: int) -> list[list[int]]:
    """All whole blocks of `length` tokens of the held-out documents, each document cut by itself.

    Args:
        settings: lm-eval's metadata: `text`, and `tokenizer` or else `pretrained`, which says whose tokens.
    """
    tokenizer = tokenizer_for(settings, "loss by position")
    blocks = []
    for document in read_documents(settings.get("text", STDLIB)):
        ids = tokenizer(document, add_special_tokens=False)["input_ids"]
        blocks += [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    if not blocks:
        raise UserError(f"held-out text: no document has {length} tokens; pass a smaller --metadata positions=")
    return blocks
