"""Documents of own-haystack-niah for a model with any tokenizer."""

from __future__ import annotations

from functools import partial
from typing import Any

import datasets
import numpy as np

from fla_mesa.data.synthetic.own_haystack_niah import OwnHaystackNIAH
from fla_mesa.errors import UserError
from fla_mesa.eval.checkpoint import tokenizer_of

SHORTEST = 320  # characters that hold any variant's needle, question and answer, and a haystack worth the name


def documents(variant: int, **settings: Any) -> dict[str, datasets.Dataset]:
    """lm-eval's `custom_dataset`: it passes all of --metadata and --model_args.

    Settings that are read: length, the tokens of a document with its answer (1024); samples, their number (100); seed (0);
    tokenizer or else pretrained, which says whose tokens.

    Raises:
        ValueError: A setting is out of range, there is no tokenizer, or it does not read the answer as it is written.
    """
    length, samples, seed = (
        settings.get(name, value) for name, value in (("length", 1024), ("samples", 100), ("seed", 0))
    )
    for name, value, low in (("length", length, 64), ("samples", samples, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise UserError(f"own_haystack_niah_{variant}: {name} must be an integer >= {low}, got {value!r}")
    from transformers import AutoTokenizer

    source = settings.get("tokenizer") or settings.get("pretrained")
    if not isinstance(source, str):
        raise UserError(
            "own_haystack_niah needs a tokenizer: pass --model_args pretrained=PATH or --metadata tokenizer=PATH"
        )
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of(source))
    task = OwnHaystackNIAH(variant)
    rng = np.random.default_rng([seed, variant])
    rows = []
    # Characters per token, learnt from the documents as they come; tokens are counted, characters are what can be chosen.
    characters = float(max(length, SHORTEST))
    while len(rows) < samples:
        document = task.document(rng, length=int(characters))
        tokens = len(tokenizer(document.context + document.answer, add_special_tokens=False)["input_ids"])
        if tokens == 0:
            raise UserError(f"the tokenizer of {source!r} gives no tokens for text")
        if tokens <= length and tokens >= 0.95 * length:
            rows.append({"context": document.context, "answer": document.answer})
        else:
            characters = max(characters * 0.98 * length / tokens, SHORTEST)
            if characters == SHORTEST and tokens > length:
                raise UserError(
                    f"own_haystack_niah_{variant}: length {length} is too short for a document; it takes {tokens} tokens"
                )
    return {"test": datasets.Dataset.from_list(rows)}


documents_1, documents_2, documents_3 = (partial(documents, variant) for variant in (1, 2, 3))
