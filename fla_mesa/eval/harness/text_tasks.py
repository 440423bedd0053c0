"""What this package's tasks on text call: lm-eval hands all of --metadata and --model_args to its `custom_dataset`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import datasets
import numpy as np

from fla_mesa.data.documents import STDLIB, read_documents, token_ids
from fla_mesa.data.needles import fitted
from fla_mesa.data.synthetic.own_haystack_niah import OwnHaystackNIAH
from fla_mesa.errors import UserError, check_integer
from fla_mesa.models.checkpoint import tokenizer_for

Splits = dict[str, datasets.Dataset]


def number(settings: Mapping[str, object], name: str, default: int, low: int, task: str = "") -> int:
    """A setting that is an integer. Raises UserError, in the name of `task`, for one that is none or below `low`."""
    return check_integer(f"{task}: {name}" if task else name, settings.get(name, default), low)


def held_out(**settings: object) -> Splits:
    """Held-out documents: `text` says which, see :func:`fla_mesa.data.documents.read_documents`.

    Where the settings name a tokenizer (`tokenizer`, or else `pretrained`), each document comes with the number of its tokens.
    """
    columns: dict[str, list] = {"text": read_documents(settings.get("text", STDLIB))}
    if settings.get("tokenizer") or settings.get("pretrained"):
        tokenizer = tokenizer_for(settings, "held-out text")
        columns["tokens"] = [len(token_ids(tokenizer, text)) for text in columns["text"]]
    return {"test": datasets.Dataset.from_dict(columns)}


def held_out_scores(document: dict, results: list[float]) -> dict[str, tuple[float, int]]:
    """lm-eval's `process_results`: the log-likelihood of a text beside its size, for perplexities of a byte and of a token."""
    in_bytes = (results[0], len(document["text"].encode()))
    found = {"byte_perplexity": in_bytes, "bits_per_byte": in_bytes}
    return found | ({"token_perplexity": (results[0], document["tokens"])} if "tokens" in document else {})


def needles(variant: int, **settings: object) -> Splits:
    """Documents of own-haystack-niah for a model with any tokenizer.

    Settings that are read: length, the tokens of a document with its answer (1024); samples, their number (100); seed (0);
    tokenizer or else pretrained, which says whose tokens.

    Raises:
        UserError: A setting is out of range, there is no tokenizer, or it does not read the answer as it is written.
    """
    task = f"own_haystack_niah_{variant}"
    of = (("length", 1024, 64), ("samples", 100, 1), ("seed", 0, 0))
    length, samples, seed = (number(settings, *each, task=task) for each in of)
    tokenizer, rng = tokenizer_for(settings, task), np.random.default_rng([seed, variant])
    try:
        chosen = [made.document for made in islice(fitted(OwnHaystackNIAH(variant), tokenizer, length, rng), samples)]
    except ValueError as error:
        raise UserError(f"{task}: {error}") from None
    return {"test": datasets.Dataset.from_list([{"context": d.context, "answer": d.answer} for d in chosen])}
