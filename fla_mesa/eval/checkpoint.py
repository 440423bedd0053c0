"""Is this directory a checkpoint, and what is it? Asked before anything is loaded, so that the answer is one clear sentence."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import CONFIG_MAPPING

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json", "pytorch_model.bin.index.json", "*.gguf")


def looks_local(path: str) -> bool:
    """Whether a string names a place on this machine rather than a model on a hub ('gpt2', 'owner/name')."""
    return Path(path).expanduser().exists() or path.startswith(("/", "./", "../", "~")) or path.count("/") > 1


def check_checkpoint(path: str) -> None:
    """Raise if a local path is not a checkpoint that transformers can load; names of a hub are left to transformers.

    Raises:
        ValueError: There is no such directory, it lacks its configuration or weights, or no installed package knows its model_type.
    """
    if not looks_local(path):
        return
    directory = Path(path).expanduser()
    if not directory.is_dir():
        raise ValueError(f"checkpoint {path!r}: there is no such directory")
    config_file = directory / "config.json"
    if not config_file.is_file():
        inside = sorted(entry.name for entry in directory.iterdir())
        hint = [name for name in inside if (directory / name / "config.json").is_file()]
        more = f"; did you mean one of {', '.join(hint)} inside it?" if hint else ""
        raise ValueError(f"{path!r} is no checkpoint: it has no config.json (it holds {_some(inside)}){more}")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path!r} is no checkpoint: its config.json is not JSON ({error})") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type not in CONFIG_MAPPING and "auto_map" not in config:
        raise ValueError(
            f"checkpoint {path!r} has the unknown model_type {model_type!r}: neither this package ('mesanet') nor flash-linear-attention "
            f"nor transformers provides it; install or import the package that does"
        )
    if not any(any(directory.glob(pattern)) for pattern in _WEIGHTS):
        raise ValueError(f"{path!r} is no checkpoint: it has no weights (*.safetensors or pytorch_model*.bin)")


def recorded_suite(path: object) -> str | None:
    """The spec of the synthetic suite that a checkpoint's number tokenizer records, or None."""
    if not isinstance(path, str) or not path:
        return None
    file = Path(path).expanduser() / "tokenizer_config.json"
    if not file.is_file():
        return None
    return json.loads(file.read_text(encoding="utf-8")).get("synthetic_suite")


def _some(names: list[str], limit: int = 6) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
