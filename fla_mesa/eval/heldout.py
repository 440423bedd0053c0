"""Held-out text for bits per byte and for loss by position."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets


def read_documents(text: object) -> list[str]:
    """The documents of a file.

    Args:
        text: Path of a text file (one document), of a .jsonl file with a "text" in each line, or of a directory of text files, sorted.

    Raises:
        ValueError: No such file, nothing in it, or it is not text.
    """
    if not isinstance(text, str) or not text:
        raise ValueError(
            "held-out text is needed: pass --metadata text=PATH, a text file, a .jsonl file, or a directory of text files"
        )
    path = Path(text).expanduser()
    if not path.exists():
        raise ValueError(f"held-out text: there is no file {text!r}")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    documents = []
    for file in files:
        try:
            content = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"held-out text: {str(file)!r} is not UTF-8 text ({error})") from error
        documents += _json_lines(file, content) if file.suffix == ".jsonl" else [content]
    documents = [document for document in documents if document]
    if not documents:
        raise ValueError(f"held-out text: {text!r} holds no text")
    return documents


def _json_lines(file: Path, content: str) -> Iterator[str]:
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            yield json.loads(line)["text"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"held-out text: line {number} of {str(file)!r} is no JSON object with a 'text' ({error!r})"
            ) from error


def documents(**settings: Any) -> dict[str, datasets.Dataset]:
    """lm-eval's `custom_dataset`: it passes all of --metadata and --model_args, of which `text` is read."""
    return {"test": datasets.Dataset.from_dict({"text": read_documents(settings.get("text"))})}


def token_blocks(settings: dict[str, Any], length: int) -> list[list[int]]:
    """All whole blocks of `length` tokens of the held-out documents, each document cut by itself.

    Args:
        settings: lm-eval's metadata: `text`, and `tokenizer` or else `pretrained`, which says whose tokens.
    """
    from transformers import AutoTokenizer

    name = settings.get("tokenizer") or settings.get("pretrained")
    if not isinstance(name, str):
        raise ValueError(
            "loss by position needs a tokenizer: pass --model_args pretrained=PATH or --metadata tokenizer=PATH"
        )
    tokenizer = AutoTokenizer.from_pretrained(name)
    blocks = []
    for document in read_documents(settings.get("text")):
        ids = tokenizer(document, add_special_tokens=False)["input_ids"]
        blocks += [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    if not blocks:
        raise ValueError(f"held-out text: no document has {length} tokens; pass a smaller --metadata positions=")
    return blocks


def buckets(length: int) -> list[tuple[int, int]]:
    """Ranges [first, end) of positions that double in size: 1-15, 16-31, 32-63, ... up to `length`."""
    edges = [1]
    while edges[-1] < length:
        edges.append(min(max(2 * edges[-1], 16), length))
    return list(itertools.pairwise(edges))
