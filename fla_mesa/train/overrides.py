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
    changes = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise UserError(f"config_overrides: expected key=value,key=value or a JSON object, got {part!r}")
        changes[key] = parse_value(value)
    return changes


def parse_value(text: str) -> Any:
    """A JSON value, or else a string."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


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
