"""Scrambled words and prompts that ask for the word: the five tasks of GPT-3's paper (arXiv 2005.14165, section 3.9.2).

kind                   casino may become       what is done to it
cycle_letters          inocas                  its letters are cycled
mid_word_1_anagrams    csnaio                  all letters but the first and the last are shuffled
mid_word_2_anagrams    caisno                  all letters but the first two and the last two are shuffled
random_insertion       c.a!s i/n-o             a mark or a space between every two letters
reversed_words         onisac                  its letters are reversed

prompt      Please unscramble the letters into a word, and write that word:
            yfrogg = froggy
            inocas =
target       casino
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

INSTRUCTION = "Please unscramble the letters into a word, and write that word:"
_MARKS = " .,!?/-;:"


class Document(NamedTuple):
    """A prompt and the word it asks for. Prompts with the same `prefix` begin with the same solved examples."""

    prompt: str
    word: str
    prefix: int


def documents(kind: str, words: list[str], shots: int, prefixes: int, samples: int, seed: int) -> list[Document]:
    """Every sampled word after every prefix, word by word.

    Args:
        kind: One of :data:`KINDS`.
        words: What is drawn from, but for those without a scrambled form; the examples of prefixes are never words that are asked for.
        shots: Solved examples in a prefix. Fewer of them are the beginning of more, so that prefixes compare across `shots`.
        prefixes: How many are drawn. Without shots all are alike, and there is one.
        samples: Words asked for.
        seed: Draws words, examples and scrambles; the words asked for do not depend on `shots`.

    Raises:
        ValueError: There are not enough words.
    """
    rng = np.random.default_rng([seed, sorted(KINDS).index(kind)])
    words = [word for word in words if _scrambled(kind, word, rng) != word]  # the middle of 'breezy' has no other order
    order = rng.permutation(len(words))
    if samples + shots > len(words):
        raise ValueError(f"{samples} words to ask for and {shots} to show are more than there are, {len(words)}")
    asked = [(words[i], _scrambled(kind, words[i], rng)) for i in order[:samples]]
    beginnings = []
    for prefix in range(prefixes if shots else 1):
        own = np.random.default_rng([seed, sorted(KINDS).index(kind), prefix])
        shown = (words[i] for i in own.permutation(order[samples:])[:shots])
        beginnings.append("".join(f"{_scrambled(kind, word, own)} = {word}\n" for word in shown))
    return [
        Document(f"{INSTRUCTION}\n{beginning}{scrambled} =", word, prefix)
        for word, scrambled in asked
        for prefix, beginning in enumerate(beginnings)
    ]


def _scrambled(kind: str, word: str, rng: np.random.Generator) -> str:
    """The word scrambled into a different one, if possible."""
    for _ in range(20):
        if (form := KINDS[kind](word, rng)) != word:
            return form
    return word


def _cycled(word: str, rng: np.random.Generator) -> str:
    start = int(rng.integers(1, len(word)))
    return word[start:] + word[:start]


def _anagram(word: str, rng: np.random.Generator, kept: int) -> str:
    middle = "".join(rng.permutation(list(word[kept:-kept])))
    return word[:kept] + middle + word[-kept:]


def _with_marks(word: str, rng: np.random.Generator) -> str:
    marks = [_MARKS[i] for i in rng.integers(len(_MARKS), size=len(word) - 1)]
    return "".join(letter + mark for letter, mark in zip(word, [*marks, ""], strict=True))


KINDS: dict[str, Callable[[str, np.random.Generator], str]] = {
    "cycle_letters": _cycled,
    "mid_word_1_anagrams": lambda word, rng: _anagram(word, rng, 1),
    "mid_word_2_anagrams": lambda word, rng: _anagram(word, rng, 2),
    "random_insertion": _with_marks,
    "reversed_words": lambda word, rng: word[::-1],
}
