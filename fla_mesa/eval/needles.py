"""Documents of own-haystack-niah for a model with any tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from fla_mesa.data.synthetic.own_haystack_niah import Document, OwnHaystackNIAH
from fla_mesa.errors import UserError
from fla_mesa.eval.checkpoint import tokenizer_for

SHORTEST = 320  # characters that hold any variant's needle, question and answer, and a haystack worth the name


class Fitted(NamedTuple):
    """A document, and the tokens of its two parts."""

    document: Document
    context: list[int]
    answer: list[int]


def fitted(
    task: OwnHaystackNIAH,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    rng: np.random.Generator,
    shortest: int = SHORTEST,
) -> Iterator[Fitted]:
    """Documents of 0.95 to 1 times `length` tokens, the answer included, without end.

    Args:
        task: Says which variant.
        tokenizer: Whose tokens count.
        length: Tokens.
        rng: Draws the documents.
        shortest: Characters that a document has at least.

    Raises:
        ValueError: `length` is too short for a document, or the tokenizer gives no tokens for text.
    """
    # Characters per token, learnt from the documents as they come; tokens are counted, characters are what can be chosen.
    characters = float(max(length, shortest))
    while True:
        document = task.document(rng, length=int(characters))
        context, answer = (
            tokenizer(part, add_special_tokens=False)["input_ids"] for part in (document.context, document.answer)
        )
        tokens = len(context) + len(answer)  # pyright: ignore[reportArgumentType] (lists, for a single text)
        if tokens == 0:
            raise UserError(f"the tokenizer of {tokenizer.name_or_path!r} gives no tokens for text")
        if 0.95 * length <= tokens <= length:
            yield Fitted(document, context, answer)  # pyright: ignore[reportArgumentType]
        else:
            characters = max(characters * 0.98 * length / tokens, shortest)
            if characters == shortest and tokens > length:
                raise UserError(f"length {length} is too short for a document; it takes {tokens} tokens")


def documents(variant: int, **settings: object) -> dict[str, datasets.Dataset]:
    """lm-eval's `custom_dataset`: it passes all of --metadata and --model_args.

    Settings that are read: length, the tokens of a document with its answer (1024); samples, their number (100); seed (0);
    tokenizer or else pretrained, which says whose tokens.

    Raises:
        ValueError: A setting is out of range, there is no tokenizer, or it does not read the answer as it is written.
    """
    numbers = {}
    for name, value, low in (("length", 1024, 64), ("samples", 100, 1), ("seed", 0, 0)):
        value = settings.get(name, value)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise UserError(f"own_haystack_niah_{variant}: {name} must be an integer >= {low}, got {value!r}")
        numbers[name] = value
    tokenizer = tokenizer_for(settings, f"own_haystack_niah_{variant}")
    rng = np.random.default_rng([numbers["seed"], variant])
    made = fitted(OwnHaystackNIAH(variant), tokenizer, numbers["length"], rng)
    try:
        chosen = [next(made).document for _ in range(numbers["samples"])]
    except ValueError as error:
        raise UserError(f"own_haystack_niah_{variant}: {error}") from None
    return {"test": datasets.Dataset.from_list([{"context": d.context, "answer": d.answer} for d in chosen])}
