"""Lets transformers load a checkpoint with ``trust_remote_code=True`` without importing this package, as plain lm_eval does.

transformers learns of this package's families only when it is imported. A file of a few lines beside the weights, to which config.json's
`auto_map` points, imports it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fla.models.modeling_utils import FLAPreTrainedModel
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from fla_mesa import plugins

STUB = "load_fla_mesa"
_AUTO_CLASSES = (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoModelForQuestionAnswering,
)


def write_remote_code(checkpoint: str | Path) -> bool:
    """Write the stub into a checkpoint folder and name it in its config.json.

    Returns:
        Whether one was needed: a family that transformers itself ships loads without, and its checkpoint is left as it is.

    Raises what transformers raises if the directory holds no configuration of a model that it or this package knows.
    """
    directory = Path(checkpoint)
    config_class = type(AutoConfig.from_pretrained(directory))
    AutoModelForCausalLM._model_mapping[config_class]  # raises KeyError: no language model
    if config_class.__module__.startswith("transformers."):
        return False
    named: dict[str, type] = {"AutoConfig": config_class}
    for auto in _AUTO_CLASSES:
        if config_class in auto._model_mapping:
            named[auto.__name__] = auto._model_mapping[config_class]  # type: ignore[assignment]
    lines = [
        "# Imports the package that registers this checkpoint's family with transformers.",
        "import fla_mesa  # noqa: F401",
        *dict.fromkeys(line for cls in named.values() for line in plugins.recreating(cls.__module__)),
        *(f"from {cls.__module__} import {cls.__name__}  # noqa: F401" for cls in named.values()),
    ]
    (directory / f"{STUB}.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    file = directory / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["auto_map"] = {name: f"{STUB}.{cls.__name__}" for name, cls in named.items()}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return True


def keep_remote_code(family: type[PreTrainedModel]) -> None:
    """Copy the stub when a family's models are saved again, if they were loaded from a folder that had one.

    transformers itself keeps `auto_map` and leaves the file behind.
    """
    save: Callable[..., Any] = family.save_pretrained
    if hasattr(save, "keeps_remote_code"):
        return

    @functools.wraps(save)
    def save_pretrained(self: PreTrainedModel, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        came_with = STUB in str(getattr(self.config, "auto_map", ""))
        # What was loaded by remote code, transformers would save with the source files of its classes, which are no files of a stub.
        self._auto_class = None
        setattr(self.config, "_auto_class", None)  # noqa: B010 (unknown to a type checker)
        saved = save(self, save_directory, *args, **kwargs)
        if came_with and (Path(save_directory) / "config.json").is_file():
            write_remote_code(save_directory)
        return saved

    setattr(save_pretrained, "keeps_remote_code", True)  # noqa: B010 (a function has no such attribute for a type checker)
    family.save_pretrained = save_pretrained


# fla's base class, so that its own families keep theirs, too: a run's folder may hold any architecture of the zoo.
keep_remote_code(FLAPreTrainedModel)
