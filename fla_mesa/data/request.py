"""What a source of data is asked for, and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from fla_mesa.errors import UserError


@dataclass(frozen=True)
class Streaming:
    """Settings for reading data during training without storing it.

    Attributes:
        shuffle_buffer: Blocks that are held in memory and shuffled together.
        held_out_tokens: How many tokens of text to validate with, at least; whole documents.
    """

    shuffle_buffer: int = 1024
    held_out_tokens: int = 1 << 19


@dataclass(frozen=True)
class DataRequest:
    """What the user asked for. None means not given; a source then uses its own value.

    `predict_end_of_text`: whether the token between two documents is a target. By default it is not, as in arXiv 2506.05233,
    G.3; sources other than text have no such token.
    """

    spec: str = "stdlib"
    validation: str | None = None
    config: str | None = None
    text_column: str | None = None
    tokenizer: str | None = None
    seq_len: int | None = None
    predict_end_of_text: bool = False
    streaming: Streaming | None = None
    say: Callable[[str], None] = print

    def reject(self, *names: str) -> None:
        """Refuses options that mean nothing to a source.

        Raises:
            UserError: One of the named options was given.
        """
        for name in names:
            if getattr(self, name) is not None:
                raise UserError(f"{name}: does not apply to --data {self.spec}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Splits:
    """Data ready for training.

    Rows of `train` and `validation` are `{"input_ids", "labels"}`, int64 `[<= seq_len]`; the model shifts the labels,
    and label -100 counts for nothing. Streamed, `train` is a `BlockStream`. `bytes_per_token` is None where the tokens stand for no text.

    Where `features` is given, there are no tokens: rows are `{"features", "labels"}`, float32 `[seq_len, features]` and `[seq_len]`, and a
    label is the target of its own position, under the squared error.
    """

    train: Dataset
    validation: Dataset
    vocab_size: int
    seq_len: int
    sha256: str
    tokenizer: PreTrainedTokenizerBase | None = None
    bytes_per_token: float | None = None
    features: int | None = None
    facts: dict = field(default_factory=dict)

    @property
    def special_ids(self) -> dict[str, int | None]:
        """bos, eos and pad ids in the form that a configuration takes."""
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        return {name: getattr(self.tokenizer, name, None) for name in names}
