"""A tokenizer whose tokens are the numbers of a synthetic suite, so that its checkpoints load like any other's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fla_mesa.data.synthetic.suite import Suite

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def number_tokenizer(suite: Suite) -> PreTrainedTokenizerFast:
    """Text '17 4 250' <-> ids [17, 4, 250]; saved next to the model, it also tells which suite the model learnt.

    There is one more token than the suite has symbols, '<|end|>', which lm-eval wants as a prefix; the model never
    reads it on this package's tasks, and needs `suite.vocab_size` rows of embedding only.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {str(i): i for i in range(suite.vocab_size)} | {"<|end|>": suite.vocab_size}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|end|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|end|>",
        synthetic_suite=suite.spec,
        model_max_length=suite.max_length,
    )
