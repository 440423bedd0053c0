"""Tries the optimizer and schedule on one parameter, so that a run that cannot start is refused before any work."""

from __future__ import annotations

import torch
from torch import nn
from transformers import Trainer, get_scheduler

from fla_mesa.errors import UserError
from fla_mesa.train.settings import RecipeArguments

_STEPS = 1000  # where epochs are counted, the number is not known yet; no schedule is refused for it
# What transformers hands an optimizer in place of parameters: it is then made from the model, and not tried.
_FROM_MODEL = {"model", "params", "optimizer_dict"}


def needs_model(arguments: RecipeArguments) -> bool:
    """Whether :func:`check_optimization` needs the model, because the optimizer looks at its modules (GaLore, Apollo, LOMO)."""
    return bool(arguments.optim_target_modules) or "lomo" in str(arguments.optim)


def check_optimization(arguments: RecipeArguments, model: nn.Module | None = None) -> None:
    """Checks that these arguments make an optimizer and a schedule.

    Args:
        arguments: The settings of a run: optim, optim_args, optim_target_modules, lr_scheduler_type, lr_scheduler_kwargs, warmup_steps.
        model: For an optimizer that looks at its modules; of any device, "meta" among them.

    Raises:
        ValueError: A package is missing, or an argument is missing, unknown or out of range; the message names the flag.
    """
    _check_optimizer(arguments, model)
    _check_schedule(arguments)


def _one_parameter() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(1))]


def _check_optimizer(arguments: RecipeArguments, model: nn.Module | None) -> None:
    name = getattr(arguments.optim, "value", arguments.optim)
    try:
        made_by, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)  # pyright: ignore[reportArgumentType]
        if (
            isinstance(made_by, type)
            and issubclass(made_by, torch.optim.Optimizer)
            and not _FROM_MODEL & options.keys()
        ):
            made_by(_one_parameter(), **options)
    except (ImportError, ValueError, TypeError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
        given = f" with optim_args={arguments.optim_args!r}" if arguments.optim_args else ""
        raise UserError(f"optim: {name}{given} cannot be used here: {error}") from error


def _check_schedule(arguments: RecipeArguments) -> None:
    name = getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)
    steps = arguments.max_steps if arguments.max_steps > 0 else _STEPS
    try:
        get_scheduler(
            arguments.lr_scheduler_type,
            torch.optim.SGD(_one_parameter(), lr=arguments.learning_rate),
            num_warmup_steps=arguments.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,  # pyright: ignore[reportArgumentType]
        )
    except (ValueError, TypeError) as error:
        given = arguments.lr_scheduler_kwargs
        raise UserError(
            f"lr_scheduler_type: {name} cannot be made with lr_scheduler_kwargs={given!r}: {error}"
        ) from error
