"""metrics.json: a run's results, data and versions."""

import math
from dataclasses import asdict
from typing import Any

import torch

from fla_mesa.data import Splits
from fla_mesa.data.yardsticks import yardsticks
from fla_mesa.provenance import commit, device_name, versions
from fla_mesa.train.settings import RecipeSettings
from fla_mesa.train.trainer import RecipeTrainer


def parameter_counts(model: torch.nn.Module) -> dict[str, int]:
    """Number of all parameters, counting tied ones once, and of those that are not embeddings."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    total = sum(parameter.numel() for parameter in model.parameters())
    outside = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in embeddings)
    return {"parameters": total, "parameters_without_embeddings": outside}


def history(trainer: RecipeTrainer) -> dict[str, list[list[float]]]:
    """Loss by step: `[[step, nats per token], ...]` for training (mean since the previous entry) and validation."""
    curves: dict[str, list[list[float]]] = {"train": [], "validation": []}
    for entry in trainer.state.log_history:
        for curve, name in (("train", "loss"), ("validation", "eval_loss")):
            if name in entry:
                curves[curve].append([entry["step"], entry[name]])
    return curves


def solver_history(trainer: RecipeTrainer) -> dict[str, list[list[float]]]:
    """Mean iterations and share of solves above the tolerance, by step as in `history`; empty for a model without solves."""
    return {
        name: points
        for name in ("cg_iterations", "cg_unsolved")
        if (points := [[entry["step"], entry[name]] for entry in trainer.state.log_history if name in entry])
    }


def collect(
    trainer: RecipeTrainer, settings: RecipeSettings, splits: Splits, final: dict[str, float], command: list[str]
) -> dict[str, Any]:
    """Everything in metrics.json. `final` holds the figures on all validation data, with `final_` before each name.

    Losses are in nats a token; or mean squared errors where there are no tokens, and then neither perplexity nor accuracy.
    `tokens_per_second` is over all processes, without evaluations and checkpoints, and for the steps since the last resume; None if
    there was none. `yardsticks` are in bits per byte. `solver` has the mean iterations of Mesa layers on the validation data and the share
    of solves that ended above the tolerance, None where there are none or none is known.
    """
    curves, arguments = history(trainer), trainer.recipe
    speed = trainer.throughput.tokens_per_second(arguments.world_size)
    model: Any = trainer.accelerator.unwrap_model(trainer.model)  # pyright: ignore[reportArgumentType] (it is built by now)
    return {
        "model": settings.model,
        "size": settings.size,
        "loss": final["final_loss"],
        "perplexity": math.exp(final["final_loss"]) if splits.features is None else None,
        "bits_per_byte": final.get("final_bits_per_byte"),
        "yardsticks": yardsticks(splits),
        "accuracy": final.get("final_accuracy"),
        "train_loss": curves["train"][-1][1] if curves["train"] else None,
        "tokens_per_second": speed,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "sequences_per_step": arguments.sequences_per_step,
        "seq_len": splits.seq_len,
        **parameter_counts(model),
        "seed": arguments.seed,
        "device": device_name(arguments.device),
        "processes": arguments.world_size,
        "data": {"source": settings.data, "sha256": splits.sha256, **splits.facts},
        "versions": versions(),
        "commit": commit(),
        "command": command,
        "settings": {**asdict(settings), **arguments.to_sanitized_dict()},
        "history": curves,
        "solver": {
            "cg_iterations": final.get("final_cg_iterations"),
            "cg_unsolved": final.get("final_cg_unsolved"),
            "history": solver_history(trainer),
        },
    }
