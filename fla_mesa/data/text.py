"""Text sources: Python's own library, files and folders, tables, and hub datasets."""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fla_mesa.data import tables, text_files
from fla_mesa.data.packing import TokenBlocks, describe, tokenize
from fla_mesa.data.request import DataRequest, Splits
from fla_mesa.data.tokenizer import byte_tokenizer
from fla_mesa.errors import HubUnreachable, UserError, to_reach_hub

TEXT_SEQ_LEN = 256
BYTE_TOKENIZER = "bytes"

Data = TypeVar("Data")


def on_disk(spec: str, request: DataRequest) -> Path | None:
    """The file or folder that a spec names, or None if it can only be a hub dataset.

    Raises:
        UserError: There is no such file, or it is given a configuration.
    """
    path = Path(spec).expanduser()
    if not path.exists():
        known = tables.suffix_of(path) in text_files.SUFFIXES | tables.SUFFIXES
        if known or spec.startswith((".", "/", "~")) or spec.count("/") > 1:
            raise UserError(f"{path}: no such file or folder")
        return None
    _reject_config(spec, request)
    return path


def _reject_config(spec: str, request: DataRequest) -> None:
    if request.config is not None and spec == request.spec:
        raise UserError(f"data_config: {spec} is not a hub dataset and has no configurations, got {request.config!r}")


def _find(spec: str, request: DataRequest) -> text_files.TextFiles | tables.Table:
    if spec == "stdlib":
        _reject_config(spec, request)
        return text_files.standard_library(say=request.say)
    path = on_disk(spec, request)
    if path is None:
        return tables.read_hub(spec, request.config, request.text_column)
    if path.is_dir():
        return _find_in_folder(path, request)
    if tables.suffix_of(path) in tables.SUFFIXES:
        return tables.read_files(path.parent, [path], request.text_column)
    return text_files.read_file(path)  # whatever its name: it was asked for, and what is no text is found out


def _find_in_folder(root: Path, request: DataRequest) -> text_files.TextFiles | tables.Table:
    files = text_files.walk(root)
    rows = [file for file in files if tables.suffix_of(file) in tables.SUFFIXES]
    texts = [file for file in files if file.suffix.lower() in text_files.SUFFIXES]
    used = rows or texts
    if not used:
        known = " ".join(sorted(tables.SUFFIXES | text_files.SUFFIXES))
        raise UserError(f"{root}: the folder has no file of a known type; known types are {known}")
    if len(used) < len(files):
        kinds = Counter(file.suffix or "without suffix" for file in set(files) - set(used)).most_common()
        request.say(f"{root}: files of other kinds left out: {', '.join(f'{kind} {count}' for kind, count in kinds)}")
    return tables.read_files(root, rows, request.text_column) if rows else text_files.read_folder(root, texts)


def load_tokenizer(name: str | None) -> PreTrainedTokenizerBase:
    """The byte tokenizer (`bytes`), or a tokenizer from a folder or the hub.

    Raises:
        HubUnreachable: It is on the hub, and there is no network; the message says what to do.
        UserError: It cannot be loaded for another reason.
    """
    if name in (None, BYTE_TOKENIZER):
        return byte_tokenizer()
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        if not isinstance(error.__cause__, LocalEntryNotFoundError):
            raise UserError(f"tokenizer: {name!r} cannot be loaded: {error}") from error
        raise HubUnreachable(
            f"tokenizer: {name!r} is no folder here, and the Hugging Face hub, where it may be, could not be reached: {to_reach_hub()}, "
            f"once, after which HF_HOME keeps it; or save it where there is a network, AutoTokenizer.from_pretrained({name!r})"
            ".save_pretrained(FOLDER), copy the folder here and name it in --tokenizer"
        ) from error


def with_tokenizer(name: str | None, open_data: Callable[[], Data]) -> tuple[PreTrainedTokenizerBase, Data]:
    """The tokenizer, and what `open_data` returns.

    Raises:
        HubUnreachable: There is no network; where both are on the hub, the message is about both.
        UserError: One of them cannot be had for another reason.
    """
    try:
        tokenizer = load_tokenizer(name)
    except HubUnreachable as missing:
        try:
            open_data()
        except HubUnreachable as other:
            raise HubUnreachable(f"{missing}\n{other}") from missing
        raise
    return tokenizer, open_data()


def load_text(request: DataRequest) -> Splits:
    """The loader of every spec that is not the name of a source.

    Raises:
        UserError: A file or an option is wrong; the message names it.
    """
    seq_len = TEXT_SEQ_LEN if request.seq_len is None else request.seq_len
    tokenizer, found = with_tokenizer(request.tokenizer, lambda: _find(request.spec, request))
    other = found if request.validation is None else _find(request.validation, request)
    if request.text_column is not None and not isinstance(found, tables.Table) and not isinstance(other, tables.Table):
        raise UserError(f"text_column: {request.spec} is plain text and has no columns, got {request.text_column!r}")
    if request.validation is not None:
        train, validation, how = found.for_training(), other.for_validation(), request.validation
    else:
        train, validation, how = found.split()

    cache = _token_cache()
    train_tokens, validation_tokens = tokenize(train, tokenizer, cache), tokenize(validation, tokenizer, cache)
    unscored = None if request.predict_end_of_text else cast("int | None", tokenizer.eos_token_id)
    train_blocks = TokenBlocks(train_tokens.ids, seq_len, unscored=unscored)
    # The model looks back only, so what fills up the last block is never seen by what is scored in it.
    validation_blocks = TokenBlocks(validation_tokens.ids, seq_len, keep_tail=True, unscored=unscored)
    for part, blocks in (("training", train_blocks), ("validation", validation_blocks)):
        if not len(blocks):
            raise UserError(
                f"data: {len(blocks.ids)} tokens of {part} text are too few for a block of {seq_len} (seq_len)"
            )

    sha256 = hashlib.sha256(f"{train_tokens.sha256} {validation_tokens.sha256}".encode()).hexdigest()
    request.say(
        f"data: {request.spec}: {train_tokens.documents + validation_tokens.documents:,} documents, "
        f"{train_tokens.text_bytes + validation_tokens.text_bytes:,} bytes, sha256 {sha256[:16]}; "
        f"{len(train_tokens.ids):,} tokens to train on, {len(validation_tokens.ids):,} held out ({how})"
    )
    return Splits(
        train=train_blocks,
        validation=validation_blocks,
        vocab_size=len(tokenizer),
        seq_len=seq_len,
        sha256=sha256,
        tokenizer=tokenizer,
        bytes_per_token=validation_tokens.bytes_per_token,
        facts={"held_out": how, "train": describe(train_tokens), "validation": describe(validation_tokens)},
    )


def _token_cache() -> Path:
    """Cache folder for the tokens of tables, next to the tables cached by `datasets` (HF_HOME, HF_DATASETS_CACHE)."""
    from datasets.config import HF_DATASETS_CACHE

    return Path(HF_DATASETS_CACHE) / "fla_mesa_tokens"
