"""A tokenizer that needs no training and no download: one token per byte.

Token b is byte b (0 to 255); token 256 is `<|endoftext|>`, which begins, ends and pads. Because the ids are the bytes
themselves, whole files become tokens by a cast (`encode`), and the loss in nats a token is bits per byte times ln 2.
"""

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 256
VOCAB_SIZE = 257


def _byte_letters() -> list[str]:
    """How the `tokenizers` library writes each byte: as itself if printable, otherwise as a letter from 256 on."""
    printing = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer as a transformers tokenizer; adds no special tokens to a text.

    `tokenizer(text)["input_ids"]` are the UTF-8 bytes of `text`, except that a literal `<|endoftext|>` in it becomes
    token 256, as special tokens do in transformers (`split_special_tokens=True` keeps it as bytes).
    """
    vocabulary = {letter: byte for byte, letter in enumerate(_byte_letters())} | {END_OF_TEXT: END_OF_TEXT_ID}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def encode(data: bytes) -> np.ndarray:
    """Tokens of `data`, one per byte: uint16 `[len(data)]`."""
    return np.frombuffer(data, dtype=np.uint8).astype(np.uint16)


def decode(ids: np.ndarray) -> bytes:
    """The bytes that `ids` stand for; `<|endoftext|>` has none.

    Raises:
        ValueError: An id is outside 0 to 256.
    """
    ids = np.asarray(ids)
    if ids.size and (ids.min() < 0 or ids.max() > END_OF_TEXT_ID):
        raise ValueError(f"ids: byte tokens lie in 0..{END_OF_TEXT_ID}, got {ids.min()}..{ids.max()}")
    return ids[ids != END_OF_TEXT_ID].astype(np.uint8).tobytes()


def is_byte_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `tokenizer` is the byte tokenizer, built here or loaded from a saved model."""
    if len(tokenizer) != VOCAB_SIZE or tokenizer.eos_token_id != END_OF_TEXT_ID:
        return False
    return tokenizer.convert_ids_to_tokens(list(range(256))) == _byte_letters()
