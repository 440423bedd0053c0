"""`fla-mesa configs`: writes architectures as JSON files, for trainers that build models from one (flame's `--model.config`).

The files in `configs/` are its output without any flag.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from fla_mesa.commands import command
from fla_mesa.errors import mistakes_of
from fla_mesa.models import zoo

SHIPPED = ("mesanet", "hawk_mesa")
SIZES = ("140M", "340M", "440M", "940M", "1.3B")
# flame's example is the tokenizer of fla's 1.3B models: 32,000 tokens, <s> and </s>. A larger one makes flame widen the vocabulary.
TOKENS: dict[str, Any] = {"vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
CONTEXT = 2048  # arXiv 2506.05233, appendix G


def file_name(model: str, size: str) -> str:
    """File name in flame's style: ``mesanet_340M.json``."""
    return f"{model}_{size}.json"


def content(config: PreTrainedConfig) -> str:
    """The non-default settings of a configuration, readable by any version of transformers."""
    settings = config.to_diff_dict()
    settings.pop("transformers_version", None)
    return json.dumps({**settings, "model_type": config.model_type}, indent=2, sort_keys=True) + "\n"


def files(models: Sequence[str] = SHIPPED, sizes: Sequence[str] = SIZES, **tokens: Any) -> dict[str, str]:
    """File names and contents.

    Args:
        models: Architectures that :func:`fla_mesa.models.zoo.names` lists.
        sizes: As :func:`fla_mesa.models.zoo.shape` takes them.
        tokens: What differs from ``TOKENS``, or ``max_position_embeddings``.

    Raises:
        ValueError: A model or size is unknown, or a setting out of range.
    """
    settings = {**TOKENS, "max_position_embeddings": CONTEXT, **tokens}
    return {
        file_name(model, size): content(zoo.build_config(model, size, **settings)) for model in models for size in sizes
    }


@command("configs")
def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code: 0, or 2 for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="fla-mesa configs",
        description="Write architectures as JSON files that AutoConfig.from_pretrained reads once fla_mesa is imported.",
        epilog=f"Models: {', '.join(zoo.names())}. Sizes: {', '.join(zoo.sizes())}, or LAYERSxWIDTH such as 2x64.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--models", default=",".join(SHIPPED), help="comma-separated architectures (default: %(default)s)"
    )
    parser.add_argument("--sizes", default=",".join(SIZES), help="comma-separated sizes (default: %(default)s)")
    parser.add_argument("--output_dir", default="configs", help="output folder (default: %(default)s)")
    for name, value in {**TOKENS, "max_position_embeddings": CONTEXT}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="(default: %(default)s)")
    given = vars(parser.parse_args(argv))
    models, sizes = given.pop("models").split(","), given.pop("sizes").split(",")
    folder = Path(given.pop("output_dir"))
    with mistakes_of(ValueError):  # a setting out of its configuration's range
        written = files(models, sizes, **given)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in written.items():
        (folder / name).write_text(text)
    print(f"wrote {len(written)} files to {folder}: {', '.join(written)}")
    return 0
