"""The synthetic suites as sources for `fla-mesa train --data`."""

from __future__ import annotations

import hashlib

from fla_mesa.data.request import DataRequest, Splits
from fla_mesa.data.synthetic.suite import Suite, get
from fla_mesa.data.synthetic.tokenizer import number_tokenizer
from fla_mesa.data.tokenizer import byte_tokenizer


def load(request: DataRequest) -> Splits:
    """The loader of every suite; `request.spec` is a spec of :func:`fla_mesa.data.synthetic.get`.

    All rows have one length: that of the longest sequence to train on or to validate with; shorter ones are filled up at the end with
    what is not scored.

    Raises:
        ValueError: The spec is wrong, or an option is given that has no meaning for a suite.
    """
    request.reject("validation", "config", "text_column", "tokenizer", "seq_len")
    suite = get(request.spec)
    width = max(task.columns for split in ("train", "validation") for task, _ in suite.segments(split))
    train, validation = suite.dataset("train", width), suite.dataset("validation", width)
    request.say(
        f"data: {suite.spec}: {len(train):,} sequences to train on, {len(validation):,} to validate with, {width} tokens each"
    )
    return Splits(
        train=train.with_format("torch"),  # type: ignore[arg-type]
        validation=validation.with_format("torch"),  # type: ignore[arg-type]
        vocab_size=suite.vocab_size,
        seq_len=width,
        sha256=hashlib.sha256(_description(suite).encode()).hexdigest(),
        tokenizer=byte_tokenizer() if suite.is_text else number_tokenizer(suite),
        facts={"suite": suite.spec, "seed": suite.seed, "train": len(train), "validation": len(validation)},
    )


def _description(suite: Suite) -> str:
    """Everything that the sequences depend on: parameters, numbers and seed."""
    return repr((suite.seed, suite.train, suite.validation))
