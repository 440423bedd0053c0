"""Generation with fla's and this package's models on transformers 5.24 and later, which call the cache ``cache``.

fla 0.6.0's models, and ours, which are drop-ins for them, know it as ``past_key_values``. Handed ``cache``, fla's drop it, and each step of
generation would read the last token alone.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from fla.models.utils import FLAGenerationMixin
from transformers import GenerationMixin


def install() -> None:
    """Rename the cache between ``generate`` and every model of fla, on any device. Calling it again does nothing."""
    original = FLAGenerationMixin.prepare_inputs_for_generation
    plain: Any = vars(GenerationMixin)["prepare_inputs_for_generation"]
    if hasattr(original, "renames_cache"):
        return
    renamed = "cache" in inspect.signature(plain).parameters

    @functools.wraps(original)
    def prepare_inputs_for_generation(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if "past_key_values" in kwargs or not (renamed or "cache" in kwargs):
            return original(self, *args, **kwargs)
        # fla's own only translates older versions' arguments, and hands the cache on by the name that is going.
        inputs = plain(self, *args, **kwargs)
        if "cache" in inputs:
            inputs["past_key_values"] = inputs.pop("cache")
        return inputs

    setattr(prepare_inputs_for_generation, "renames_cache", True)  # noqa: B010 (a function has no such attribute for a type checker)
    FLAGenerationMixin.prepare_inputs_for_generation = prepare_inputs_for_generation
