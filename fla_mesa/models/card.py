"""Model cards: README.md next to the weights, with the architecture, training data, figures, and the code that loads the model.

Whoever saves a model of this package gets one with its architecture; the recipe writes the whole. A card that its user wrote is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from fla_mesa.markdown import table
from fla_mesa.provenance import commit, versions

FILE = "README.md"
MARK = "<!-- Written by fla_mesa; written anew by the next run unless this line is removed. -->"
# Settings that say what a model is, where its configuration has them: a name, and the word for it.
_ARCHITECTURE = {
    "model_type": "family",
    "rule": "recurrence rule",
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_heads": "heads",
    "head_dim": "head size",
    "intermediate_size": "MLP width",
    "vocab_size": "vocabulary",
    "tie_word_embeddings": "tied embeddings",
    "gamma_init": "forget gates at the start",
    "max_cg_step_training": "most solver steps, sequences",
    "max_cg_step_decoding": "most solver steps, decoding",
    "cg_tolerance": "solver tolerance",
    "backend": "back end",
}
_FIGURES = {
    "loss": "validation loss, nats a token",
    "bits_per_byte": "bits per byte",
    "accuracy": "accuracy of the next token",
}


def write_card(folder: str | Path, model: PreTrainedModel, metrics: Mapping[str, Any] | None = None) -> bool:
    """Writes the README.md of a folder with a saved model.

    Args:
        folder: The folder.
        model: The model.
        metrics: What the recipe's metrics.json holds; None for a model of which only its architecture is known. Such a card does not
            take the place of one that is there.

    Returns:
        Whether it was written: not over a card of the user's own.
    """
    path = Path(folder) / FILE
    if path.exists() and (metrics is None or not is_ours(path)):
        return False
    make_card(Path(folder).resolve().name, model, metrics).save(path)
    return True


def is_ours(path: Path) -> bool:
    """Whether a card was written by this package and has not been taken over by its user."""
    return MARK in path.read_text(encoding="utf-8", errors="replace")


def make_card(name: str, model: PreTrainedModel, metrics: Mapping[str, Any] | None = None) -> ModelCard:
    """The card of a model called `name`; arguments as in :func:`write_card`."""
    results = _results(metrics) if metrics else None
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["fla_mesa", "flash-linear-attention", model.config.model_type],
        model_name=name,
        eval_results=results,
    )
    parts = [f"# {_title(name, metrics)}", MARK, *_architecture(model, metrics), *_load(name, metrics)]
    parts += _training(metrics) if metrics else []
    parts += _made_with(metrics or {"versions": versions(), "commit": commit()})
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _title(name: str, metrics: Mapping[str, Any] | None) -> str:
    return f"{metrics['model']} {metrics['size']} on {_source(metrics)}" if metrics else name


def _source(metrics: Mapping[str, Any]) -> str:
    """The data's name, without the machine's folders."""
    source = str(metrics["data"]["source"])
    return Path(source).name if Path(source).is_absolute() else source


def _architecture(model: PreTrainedModel, metrics: Mapping[str, Any] | None) -> Iterable[str]:
    rows = [["parameters", f"{metrics['parameters'] if metrics else model.num_parameters():,}"]]
    rows += [
        [word, str(value)]
        for key, word in _ARCHITECTURE.items()
        if (value := getattr(model.config, key, None)) is not None
    ]
    yield "## Architecture"
    yield table(["", ""], rows, left=2)


def _load(name: str, metrics: Mapping[str, Any] | None) -> Iterable[str]:
    lines = [
        "import fla_mesa  # registers the model's family with transformers",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
    ]
    lines.append(f'model = AutoModelForCausalLM.from_pretrained("{name}")  # this folder')
    if metrics is None or metrics["bits_per_byte"] is not None:  # a task of symbols has no tokenizer
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{name}")')
    else:
        lines[1] = "from transformers import AutoModelForCausalLM"
    yield "## Load"
    yield "```python\n" + "\n".join(lines) + "\n```"


def _training(metrics: Mapping[str, Any]) -> Iterable[str]:
    settings = metrics["settings"]
    tokens = metrics["steps"] * metrics["sequences_per_step"] * metrics["seq_len"]
    yield "## Training"
    rows, length = metrics["sequences_per_step"], metrics["seq_len"]
    facts = [
        f"- data: {_source(metrics)} (sha256 {metrics['data']['sha256'][:16]})",
        f"- {metrics['steps']:,} steps of {rows} sequences of {length} tokens: at most {tokens:,} tokens",
        f"- learning rate {settings['learning_rate']}, weight decay {settings['weight_decay']}, seed {metrics['seed']}",
        f"- on {metrics['device']}, {metrics['processes']} process(es)",
    ]
    yield "\n".join(facts)
    yield "## Figures on held-out data"
    rows = [[word, f"{metrics[key]:.4f}"] for key, word in _figures(metrics).items()]
    rows += [
        [f"for comparison: {name}, bits per byte", f"{bits:.3f}"]
        for name, bits in (metrics["yardsticks"] or {}).items()
    ]
    yield table(["", ""], rows)
    yield "![Training and validation loss](loss.png)"
    yield "Everything else is in `metrics.json`."


def _figures(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The figures that exist, with their names. Models that predict numbers have no accuracy."""
    of_vectors = {"loss": "mean squared error"} if metrics["accuracy"] is None else {}
    return {key: word for key, word in (_FIGURES | of_vectors).items() if metrics[key] is not None}


def _results(metrics: Mapping[str, Any]) -> list[EvalResult]:
    """For the card's metadata."""
    source = _source(metrics)
    kind = re.sub(r"[^\w.-]+", "-", source)
    results = []
    for key, word in _figures(metrics).items():
        about: dict[str, Any] = {"task_type": "text-generation", "dataset_type": kind, "dataset_name": source}
        results.append(EvalResult(**about, metric_type=key, metric_name=word, metric_value=metrics[key]))
    return results


def _made_with(metrics: Mapping[str, Any]) -> Iterable[str]:
    yield "## Made with"
    found = ", ".join(f"{name} {version}" for name, version in metrics["versions"].items() if version)
    yield f"{found}; commit of fla_mesa: {metrics['commit'] or 'unknown'}."
    yield "MesaNet: von Oswald et al., arXiv 2506.05233. Families of flash-linear-attention: github.com/fla-org/flash-linear-attention."
