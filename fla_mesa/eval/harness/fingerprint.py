"""What an answer depends on beside the question: the name of a model's cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from lm_eval.api.model import LM
from torch import nn
from transformers import PreTrainedTokenizerBase

from fla_mesa.errors import UserError
from fla_mesa.layers.solver import mesa_layers
from fla_mesa.provenance import versions

# Arguments of a model that say where its weights come from, which are hashed themselves, or how fast it answers.
_NO_MATTER = {"pretrained", "peft", "delta", "revision", "subfolder", "tokenizer", "gguf_file", "device", "parallelize"}
_NO_MATTER |= {"offload_folder", "batch_size", "max_batch_size", "max_memory_per_gpu", "max_cpu_memory"}
_PLACES = {"_name_or_path", "transformers_version"}  # in a configuration


def fingerprint(lm: LM, name: str, arguments: Mapping[str, object]) -> str:
    """16 hexadecimal digits that differ wherever the answers of a model may.

    They are of the weights as they are in memory (so of their dtype and of a merged adapter), the configuration, the settings of Mesa
    layers, the tokenizer, the context length, the kind of device, all other arguments of the model, and the versions of packages.

    Args:
        lm: lm-eval's model. One without weights (a server's, say) is known by its name and all of its arguments.
        name: What --model was.
        arguments: What --model_args were.

    Raises:
        UserError: The weights are kept on disk and cannot be read here.
    """
    text_model: Any = lm  # LM does not declare what HFLM has
    model = getattr(lm, "model", None)
    known: dict[str, object] = {"model": name, "versions": {**versions(), "lm_eval": version("lm-eval")}}
    if not isinstance(model, nn.Module):
        return _digest({**known, "arguments": arguments}).hexdigest()[:16]
    known |= {
        "arguments": {key: value for key, value in arguments.items() if key not in _NO_MATTER},
        "config": {key: value for key, value in model.config.to_dict().items() if key not in _PLACES},  # pyright: ignore
        "attention": getattr(model.config, "_attn_implementation", None),
        "solver": [_plain_settings(layer) for layer in mesa_layers(model)],
        "tokenizer": _tokenizer(text_model.tokenizer),
        "max_length": text_model.max_length,
        "device": text_model.device.type,
    }
    digest = _digest(known)
    for key, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):  # a quantizer's extra state
            digest.update(f"{key} {tensor}".encode())
            continue
        if tensor.is_meta:
            raise UserError(
                f"use_cache: the weights of this model are kept on disk ({key}), so its cache cannot be named"
            )
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore[reportAttributeAccessIssue]
        digest.update(local.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _digest(known: Mapping[str, object]) -> hashlib._Hash:
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())


def _plain_settings(layer: nn.Module) -> dict[str, object]:
    """The attributes of a layer that are numbers, words or None; the solver's are among them."""
    return {
        key: value
        for key, value in vars(layer).items()
        if isinstance(value, bool | int | float | str | None) and not key.startswith("_") and key != "training"
    }


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> list[object]:
    whole = getattr(tokenizer, "backend_tokenizer", None)
    content = whole.to_str() if whole is not None else tokenizer.get_vocab()
    return [content, str(tokenizer.special_tokens_map)]
