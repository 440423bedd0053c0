"""Single-needle retrieval modelled on RULER's three variants, with this package's own haystack and wording.

    Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?", arXiv 2404.06654.

RULER's second and third variants hide the needle in essays that must be downloaded. Here the haystack is made of
sentences from a small grammar, so that the suite needs no download, and the names say so: scores are comparable between
models here, not with the published S-NIAH-1/2/3.

    variant   haystack                              key     value
    1         the same few sentences repeated       words   7 digits
    2         random sentences                      words   7 digits
    3         random sentences                      words   a UUID (36 characters)

    read      Remember the code ... The lamp was cold. The code of quiet-harbour is 4830157. A boat ... The code of
              quiet-harbour is 4830157
    target                     ^^^^^^^      (only the answer at the end is scored, and a sequence is right
                                             if all of it is, which is what greedy generation would give)

Token ids are bytes (symbol 256 is the byte tokenizer's special token, unused here), so models of bytes train on it;
`document` gives the same as text for a model with any other tokenizer.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fla_mesa.data.synthetic.checks import check_choice, check_int
from fla_mesa.data.synthetic.registry import register
from fla_mesa.data.synthetic.task import IGNORE, Rows, Task
from fla_mesa.errors import UserError

_VOCABULARY = {
    "adjective": (
        "amber ancient bitter blue brave bright broken calm clever cold copper crimson curious dark distant "
        "dusty early empty faded famous fierce gentle golden grey hidden hollow honest humble icy idle ivory "
        "jolly late little lonely loud lucky mellow misty modest narrow noble odd pale patient plain proud "
        "quick quiet rapid restless rusty sandy secret shy silent silver slow small solemn steady stormy "
        "strange sunny tall tender thirsty tidy tiny vivid warm weary wild wooden young "
    ),
    "noun": (
        "anchor apple barn basket bell boat bridge candle canyon castle cellar chair cliff cloud compass "
        "corner cottage creek desert door drum engine falcon feather fence ferry field forest fountain garden "
        "gate glacier hammer harbour hill horse island kettle ladder lamp lantern lemon letter library market "
        "meadow mill mirror mountain needle oak orchard otter owl painter paper pebble piano pilot pocket "
        "pond raven river road rope sailor shadow shelf ship stone table tailor tower train tunnel valley "
        "violin wagon wall window "
    ),
    "verb": (
        "admired avoided carried circled crossed drew faced followed found guarded left met missed moved "
        "painted passed reached remembered saw sought studied touched turned watched "
    ),
    "place": (
        "after lunch | at dawn | at night | before the storm | behind the hill | by the shore | "
        "during the winter | every morning | for many years | in the rain | near the border | on the way home | "
        "once a week | since the spring | under the old bridge | without a word"
    ),
}
_ADJECTIVES, _NOUNS, _VERBS = (_VOCABULARY[kind].split() for kind in ("adjective", "noun", "verb"))
_PLACES = _VOCABULARY["place"].split(" | ")
_REPEATED = ("The lamp was cold. ", "Rain fell on the road. ", "Nobody came by. ", "The clock went on. ")

_INTRODUCTION = "Remember the {kind} in this text; it is asked for at the end.\n"
_NEEDLE = "The {kind} of {key} is {value}. "
_QUESTION = "\nWhich {kind} was it? The {kind} of {key} is"


@dataclass(frozen=True)
class Document:
    """`context` ends where the answer begins; `answer` starts with the space that separates them."""

    context: str
    answer: str
    key: str


@register("own-haystack-niah-3", sizes=(10_000, 200, 500), variant=3)
@register("own-haystack-niah-2", sizes=(10_000, 200, 500), variant=2)
@register("own-haystack-niah-1", sizes=(10_000, 200, 500), variant=1)
@dataclass(frozen=True)
class OwnHaystackNIAH(Task):
    """Parameters of single-needle retrieval; `length` counts bytes, the answer included."""

    name: ClassVar[str] = "own-haystack-niah"
    paper: ClassVar[str] = "arXiv 2404.06654"
    is_text: ClassVar[bool] = True

    variant: int = 1
    length: int = 1024

    def __post_init__(self) -> None:
        check_choice(self.name, "variant", self.variant, (1, 2, 3))
        check_int(self.name, "length", self.length, 320)

    @property
    def symbols(self) -> int:
        return 257

    @property
    def columns(self) -> int:
        return self.length

    def document(self, rng: np.random.Generator, length: int | None = None) -> Document:
        """A random document of exactly `length` characters (all ASCII), by default of the task's length.

        Raises:
            UserError: `length` is too short for the needle and the question.
        """
        length = self.length if length is None else length
        kind = "password" if self.variant == 3 else "code"
        key = f"{_pick(rng, _ADJECTIVES)}-{_pick(rng, _NOUNS)}"
        value = str(uuid.UUID(bytes=rng.bytes(16), version=4)) if self.variant == 3 else str(rng.integers(10**6, 10**7))
        needle = _NEEDLE.format(kind=kind, key=key, value=value)
        head, tail = _INTRODUCTION.format(kind=kind), _QUESTION.format(kind=kind, key=key)
        answer = f" {value}"
        room = length - len(head) - len(needle) - len(tail) - len(answer)
        if room < 0:
            raise UserError(f"{self.name}: length must be at least {length - room} for this document, got {length}")
        sentences = self._sentences(rng, room)
        # The first sentence is cut at its front to fill the length; the needle may stand after any sentence.
        surplus = sum(map(len, sentences)) - room
        sentences[0] = sentences[0][surplus:]
        sentences.insert(int(rng.integers(0, len(sentences) + 1)), needle)
        return Document(head + "".join(sentences) + tail, answer, key)

    def _sentences(self, rng: np.random.Generator, room: int) -> list[str]:
        """Sentences of at least `room` characters in all, and less without the first."""
        if self.variant == 1:
            shortest = min(map(len, _REPEATED))
            repeated = [_REPEATED[i % len(_REPEATED)] for i in range(room // shortest + 1)]
            return _just_enough(repeated, room)
        count = room // 30 + 2  # a sentence has more than 30 characters
        places = rng.integers(0, [len(_ADJECTIVES), len(_NOUNS), len(_VERBS), len(_NOUNS), len(_PLACES)], (count, 5))
        return _just_enough(
            [
                f"The {_ADJECTIVES[a]} {_NOUNS[n]} {_VERBS[v]} the {_NOUNS[m]} {_PLACES[p]}. "
                for a, n, v, m, p in places.tolist()
            ],
            room,
        )

    def draw(self, rng: np.random.Generator, n: int, split: str) -> Rows:
        input_ids = np.empty((n, self.length), dtype=np.int64)
        labels = np.full((n, self.length), IGNORE, dtype=np.int64)
        for i in range(n):
            document = self.document(rng)
            input_ids[i] = np.frombuffer((document.context + document.answer).encode("ascii"), dtype=np.uint8)
            labels[i, len(document.context) :] = input_ids[i, len(document.context) :]
        return {"input_ids": input_ids, "labels": labels}

    def scores(self, predictions: np.ndarray, rows: Rows) -> np.ndarray:
        """[n] float64: 1 where the whole answer is right, else 0."""
        right, scored = self.correct(predictions, rows)
        return (right == scored).all(axis=1).astype(np.float64)


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _just_enough(sentences: list[str], room: int) -> list[str]:
    """The fewest last sentences that together have at least `room` characters."""
    total, first = 0, len(sentences)
    while total < room:
        first -= 1
        total += len(sentences[first])
    return sentences[first:] or [""]
