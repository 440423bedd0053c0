"""Baselines that a byte-level model must beat: two predictors that need almost no training."""

import math

import numpy as np

from fla_mesa.data.packing import TokenBlocks
from fla_mesa.data.request import Splits
from fla_mesa.data.tokenizer import END_OF_TEXT_ID, VOCAB_SIZE, is_byte_tokenizer

UNIFORM_BITS_PER_BYTE = math.log2(256)


def yardsticks(splits: Splits) -> dict[str, float]:
    """Bits per byte of each baseline by name; empty if the tokens are not bytes of text."""
    train, validation = splits.train, splits.validation
    if not (isinstance(train, TokenBlocks) and isinstance(validation, TokenBlocks)):
        return {}
    if splits.tokenizer is None or not is_byte_tokenizer(splits.tokenizer):
        return {}
    return {"uniform bytes": UNIFORM_BITS_PER_BYTE, "byte bigram, add-one": bigram_bits_per_byte(train, validation)}


def bigram_bits_per_byte(train: TokenBlocks, validation: TokenBlocks) -> float:
    """Bits per byte of a bigram model counted on `train`, on exactly the tokens of `validation` that models predict.

    p(next | previous) = (n(previous, next) + 1) / (n(previous) + 257), for the 256 bytes and the end-of-text token. As
    with any model here, the first token of a block is not predicted, and end-of-text tokens, where they are predicted at all,
    cost bits but are no byte.
    """
    ids = train.ids.astype(np.int64)
    pairs = np.bincount(ids[:-1] * VOCAB_SIZE + ids[1:], minlength=VOCAB_SIZE**2).reshape(VOCAB_SIZE, VOCAB_SIZE)
    bits = -np.log2((pairs + 1) / (pairs.sum(axis=1, keepdims=True) + VOCAB_SIZE))  # [previous, next]

    held_out = validation.ids.astype(np.int64)
    target = np.arange(1, len(held_out))
    target = target[(target % validation.seq_len != 0) & (held_out[target] != validation.unscored)]
    text_bytes = np.count_nonzero(held_out[target] != END_OF_TEXT_ID)
    return float(bits[held_out[target - 1], held_out[target]].sum() / text_bytes)
