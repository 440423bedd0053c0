"""Lets plain `lm_eval --model hf --model_args pretrained=DIR,trust_remote_code=True` load a checkpoint.

transformers learns of this package's families only when it is imported. A file of a few lines beside the weights, to which config.json's
`auto_map` points, imports it.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM

STUB = "load_fla_mesa"


def write_stub(checkpoint: str | Path) -> bool:
    """Add the stub to a checkpoint directory and name it in its config.json.

    Returns:
        Whether one was needed: a family that transformers itself ships loads without, and its checkpoint is left as it is.

    Raises what transformers raises if the directory holds no configuration of a model that it or this package knows.
    """
    directory = Path(checkpoint)
    config_class = type(AutoConfig.from_pretrained(directory))
    model_class: type = AutoModelForCausalLM._model_mapping[config_class]  # type: ignore[assignment]
    if config_class.__module__.startswith("transformers."):
        return False
    lines = [
        "# Imports the package that registers this checkpoint's family with transformers.",
        "import fla_mesa  # noqa: F401",
        f"from {config_class.__module__} import {config_class.__name__}  # noqa: F401",
        f"from {model_class.__module__} import {model_class.__name__}  # noqa: F401",
    ]
    (directory / f"{STUB}.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    file = directory / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["auto_map"] = {
        "AutoConfig": f"{STUB}.{config_class.__name__}",
        "AutoModelForCausalLM": f"{STUB}.{model_class.__name__}",
    }
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return True
