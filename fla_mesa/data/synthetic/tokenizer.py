"""A tokenizer whose tokens are the numbers of a synthetic suite, so that its checkpoints load like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fla_mesa.data.synthetic.suite import Suite
from fla_mesa.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def number_tokenizer(suite: Suite) -> PreTrainedTokenizerFast:
    """Text '17 4 250' <-> ids [17, 4, 250]; the saved tokenizer also records which suite the model learnt.

    It has exactly `suite.vocab_size` tokens, so no row of the embedding is added for it: '0' doubles as the end and
    padding token that transformers and lm-eval ask for, and text with anything but numbers in it is refused.

    Raises:
        UserError: The suite's ids are bytes of text (own-haystack-niah); its models use a byte tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if suite.is_text:
        raise UserError(f"suite must use numbers as ids; the ids of {suite.name!r} are bytes: use a byte tokenizer")
    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(suite.vocab_size)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    zero = AddedToken("0", single_word=True, normalized=False, special=True)  # not the zero inside '40'
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=zero,
        pad_token=zero,
        synthetic_suite=suite.spec,
        model_max_length=suite.max_length,
    )
