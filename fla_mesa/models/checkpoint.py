"""Is this directory a checkpoint, and what is it? Asked before anything is loaded, for one clear sentence.

A checkpoint is a folder of a model, or one of a PEFT adapter, which names the model that it changes.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fla_mesa.errors import UserError, mistakes_of
from fla_mesa.models.regression import RegressionConfig
from fla_mesa.plugins import load_those_of

ADAPTER_FILE = "adapter_config.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json", "pytorch_model.bin.index.json", "*.gguf")


def looks_local(path: str) -> bool:
    """Whether a string names a place on this machine rather than a model on a hub ('gpt2', 'owner/name')."""
    return Path(path).expanduser().exists() or path.startswith(("/", "./", "../", "~")) or path.count("/") > 1


def check_checkpoint(path: str) -> None:
    """Raise if a local path is not a checkpoint that transformers can load; names of a hub are left to transformers.

    Raises:
        UserError: There is no such directory, it lacks its configuration or weights, no installed package knows its model_type, or it
            reads no tokens.
    """
    if not looks_local(path):
        return
    directory = Path(path).expanduser()
    if not directory.is_dir():
        raise UserError(f"checkpoint {path!r}: there is no such directory")
    if (directory / ADAPTER_FILE).is_file():
        _check_adapter(path)
        return
    load_those_of(directory)
    config_file = directory / "config.json"
    if not config_file.is_file():
        inside = sorted(entry.name for entry in directory.iterdir())
        hint = [name for name in inside if (directory / name / "config.json").is_file()]
        more = f"; did you mean one of {', '.join(hint)} inside it?" if hint else ""
        raise UserError(f"{path!r} is no checkpoint: it has no config.json (it holds {_some(inside)}){more}")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path!r} is no checkpoint: its config.json is not JSON ({error})") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type == RegressionConfig.model_type:
        raise UserError(
            f"checkpoint {path!r} reads vectors in place of tokens: fla-mesa compare measures it, and nothing else can"
        )
    if model_type not in CONFIG_MAPPING and "auto_map" not in config:
        raise UserError(
            f"checkpoint {path!r} has the unknown model_type {model_type!r}: neither this package ('mesanet') nor flash-linear-attention "
            f"nor transformers provides it; install or import the package that does"
        )
    if not any(any(directory.glob(pattern)) for pattern in _WEIGHTS):
        raise UserError(f"{path!r} is no checkpoint: it has no weights (*.safetensors or pytorch_model*.bin)")


def _check_adapter(path: str) -> None:
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"{path!r} is the folder of a PEFT adapter, and peft is not installed; run: pip install peft")
    if not any(Path(path).expanduser().glob("adapter_model.*")):
        raise UserError(f"{path!r} is no adapter: it has no weights (adapter_model.safetensors)")
    try:
        check_checkpoint(adapted_model(path) or "")
    except ValueError as error:
        raise UserError(f"the model that the adapter {path!r} changes: {error}") from error


def adapted_model(path: str) -> str | None:
    """The model that the adapter in a folder changes, as a path or a hub's name; None if the folder holds no adapter.

    Raises:
        UserError: The adapter does not say, or its file cannot be read.
    """
    file = Path(path).expanduser() / ADAPTER_FILE
    if not file.is_file():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (json.JSONDecodeError, AttributeError) as error:
        raise UserError(f"{str(file)!r} is no adapter's configuration ({error})") from error
    if not isinstance(base, str) or not base:
        raise UserError(f"{str(file)!r} does not name the model that the adapter changes (base_model_name_or_path)")
    return base


def tokenizer_of(path: str) -> str:
    """Where the tokenizer of a checkpoint lies: with it, or for an adapter saved without one with the model that it changes."""
    base = adapted_model(path)
    return path if base is None or (Path(path).expanduser() / "tokenizer_config.json").is_file() else base


def tokenizer_for(settings: Mapping[str, object], task: str) -> PreTrainedTokenizerBase:
    """The tokenizer that the settings of a task (lm-eval's metadata) name by `tokenizer`, or else by `pretrained`.

    Raises:
        UserError: They name none, or it cannot be loaded.
    """
    name = settings.get("tokenizer") or settings.get("pretrained")
    if not isinstance(name, str):
        raise UserError(f"{task} needs a tokenizer: pass --model_args pretrained=PATH or --metadata tokenizer=PATH")
    with mistakes_of(OSError, ValueError, prefix=f"tokenizer of {name!r}: "):
        return AutoTokenizer.from_pretrained(tokenizer_of(name))


def tokenizer_of_checkpoint(path: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a checkpoint.

    Raises:
        UserError: It cannot be loaded.
    """
    with mistakes_of(OSError, ValueError, prefix=f"checkpoint {path!r}: "):
        return AutoTokenizer.from_pretrained(tokenizer_of(path))


def load_model(path: str, dtype: Any = "auto") -> PreTrainedModel:
    """The model of a checkpoint, with an adapter merged into its weights; on the CPU, ready to be evaluated."""
    base = adapted_model(path)
    with mistakes_of(
        OSError, ValueError, prefix=f"checkpoint {path!r}: "
    ):  # a hub that cannot be reached, settings out of range
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path if base is None else base, dtype=dtype)
    if base is not None:
        from peft import PeftModel  # pyright: ignore[reportMissingImports] (optional)

        model = merged(PeftModel.from_pretrained(model, path))
    return model.eval()


def merged(model: Any) -> Any:
    """A PEFT model as a plain one where its adapter can be added to the weights: fused modules read these and no adapter."""
    return model.merge_and_unload() if hasattr(model.base_model, "merge_and_unload") else model


def most_positions(config: PreTrainedConfig) -> int | None:
    """How many positions a model has learnt or holds a table of; None for one that reads any length, be it well or ill."""
    if hasattr(config, "n_positions") or config.model_type in ("opt", "gpt_neo", "biogpt", "xglm"):
        return config.max_position_embeddings  # pyright: ignore[reportAttributeAccessIssue]
    return None


def recorded_suite(path: object) -> str | None:
    """The spec of the synthetic suite that a checkpoint's number tokenizer records, or None."""
    if not isinstance(path, str) or not path:
        return None
    file = Path(tokenizer_of(path)).expanduser() / "tokenizer_config.json"
    if not file.is_file():
        return None
    return json.loads(file.read_text(encoding="utf-8")).get("synthetic_suite")


def _some(names: list[str], limit: int = 6) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
