"""Documents of own-haystack-niah for a model with any tokenizer: as many tokens long as asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from fla_mesa.data.documents import token_ids
from fla_mesa.data.synthetic.own_haystack_niah import Document, OwnHaystackNIAH
from fla_mesa.errors import UserError

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
        UserError: `length` is too short for a document, or the tokenizer gives no tokens for text.
    """
    # Characters per token, learnt from the documents as they come; tokens are counted, characters are what can be chosen.
    characters = float(max(length, shortest))
    while True:
        document = task.document(rng, length=int(characters))
        context, answer = (token_ids(tokenizer, part) for part in (document.context, document.answer))
        tokens = len(context) + len(answer)
        if tokens == 0:
            raise UserError(f"the tokenizer of {tokenizer.name_or_path!r} gives no tokens for text")
        if 0.95 * length <= tokens <= length:
            yield Fitted(document, context, answer)
        else:
            characters = max(characters * 0.98 * length / tokens, shortest)
            if characters == shortest and tokens > length:
                raise UserError(f"length {length} is too short for a document; it takes {tokens} tokens")
