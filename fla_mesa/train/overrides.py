"""`--config_overrides`: changes to a model's configuration, by the names in its config.json."""

import difflib
import json
import warnings
from typing import Any

from transformers import PreTrainedConfig

from fla_mesa.errors import UserError, mistakes_of

# Facts about the data, not choices.
_FROM_DATA = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "model_type")


def parse(text: str) -> dict[str, Any]:
    """Parses `key=value,key=value` (values as in JSON, or else strings) or one JSON object.

    Raises:
        UserError: It is neither.
    """
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"config_overrides: not a JSON object: {error}") from None
    wrong = "config_overrides: expected key=value,key=value or a JSON object, got"
    return dict(setting(part, f"{wrong} {part!r}") for part in split_outside_brackets(text, ",") or [text])


def setting(part: str, wrong: str) -> tuple[str, Any]:
    """Key and value of "key=value", the value as in JSON or else a string.

    Raises:
        UserError: The part is something else; the message is `wrong`.
    """
    key, equals, value = (piece.strip() for piece in part.partition("="))
    if not (key and equals and value):
        raise UserError(wrong)
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def split_outside_brackets(text: str, separator: str) -> list[str]:
    """The parts between separators that do not stand in brackets, stripped; none that is empty."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def apply(config: PreTrainedConfig, text: str) -> PreTrainedConfig:
    """Applies changes to `config`; rebuilds it, so that it checks them itself.

    Raises:
        UserError: A key is unknown, a value has another type than the present one, or the configuration rejects it.
    """
    present, changes = config.to_dict(), parse(text)
    for key, value in changes.items():
        if key not in present:
            near = difflib.get_close_matches(key, present, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(sorted(present))}"
            raise UserError(f"config_overrides: {config.model_type} has no setting {key!r}{hint}")
        if key in _FROM_DATA:
            raise UserError(f"config_overrides: {key} is set by --data, --tokenizer and --model")
        old = present[key]
        is_number = isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool)
        if None not in (old, value) and type(old) is not type(value) and not is_number:
            raise UserError(f"config_overrides: {key} is {old!r}, so it cannot become {value!r}")
    with warnings.catch_warnings():  # fla's, of what was asked for by name
        warnings.filterwarnings("ignore", message="`fuse_linear_cross_entropy` is enabled")
        with mistakes_of(ValueError, TypeError, prefix="config_overrides: "):  # the configuration's own checks
            return type(config).from_dict({**present, **changes})
