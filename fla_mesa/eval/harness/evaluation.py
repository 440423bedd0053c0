"""One model on several tasks by lm-eval, one task at a time: what cannot be loaded or run is named, and the others' results are kept."""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, cast

import lm_eval.models  # noqa: F401 (registers lm-eval's own models)
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model, model_registry
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.evaluator import simple_evaluate
from lm_eval.loggers import EvaluationTracker, TrackioLogger, WandbLogger
from lm_eval.utils import handle_non_serializable, make_table

from fla_mesa.errors import UserError, mistakes_of
from fla_mesa.eval.harness.cut import cut_inputs
from fla_mesa.eval.harness.fingerprint import fingerprint
from fla_mesa.eval.harness.per_token import add_accuracy_per_token
from fla_mesa.eval.harness.results import Evaluation, Results
from fla_mesa.eval.harness.tasks import Tasks

logger = logging.getLogger(__name__)

# What lm-eval does with the requests of a task that it has stored.
_REQUESTS = ("cache_requests", "rewrite_requests_cache", "delete_requests_cache")

# What code raises that is wrong, rather than what checks a setting or opens a file.
_BUGS = (TypeError, AttributeError, LookupError, AssertionError, NotImplementedError)

if "fla_mesa" not in model_registry:  # its class is imported when it is first used
    model_registry.register("fla_mesa", target="fla_mesa.eval.harness.model:FlaMesaLM")


def evaluate(config: EvaluatorConfig, tasks: Tasks) -> Evaluation | None:
    """Evaluate a model, then print and save its results as lm-eval does.

    Args:
        config: Everything that lm-eval's flags say.
        tasks: The index in which the names of `config.tasks` are looked up.

    Returns:
        None in all but the first of several processes.

    Raises:
        UserError: A task does not exist, or none could be run.
    """
    names = tasks.find([name for task in config.tasks for name in task.split(",")])
    output: dict[str, Any] = {"output_path": config.output_path, "token": os.environ.get("HF_TOKEN")}
    output = {name: value for name, value in output.items() if value}
    tracker = EvaluationTracker(**{**config.hf_hub_log_args, **output})
    wandb = WandbLogger(config.wandb_args, config.wandb_config_args) if config.wandb_args else None
    trackio = TrackioLogger(config.trackio_args) if config.trackio_args else None
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as lm-eval's own command has it
    machine = {"batch_size": config.batch_size, "max_batch_size": config.max_batch_size, "device": config.device}
    with mistakes_of(
        ValueError, TypeError, OSError, KeyError
    ):  # another model's checks of its arguments; a hub out of reach
        lm = get_model(config.model).create_from_arg_obj(dict(config.model_args), machine)

    evaluation = _one_by_one(lm, config, names, tasks, tracker)
    if not evaluation.results:
        if evaluation.skipped:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in evaluation.skipped.items())
            raise UserError(f"no task could be run: {reasons}")
        return None
    tracker.general_config_tracker.model_source = config.model
    _report(evaluation, config, tracker, [log for log in (wandb, trackio) if log is not None])
    return evaluation


def _one_by_one(
    lm: LM, config: EvaluatorConfig, names: Sequence[str], tasks: Tasks, tracker: EvaluationTracker
) -> Evaluation:
    # lm-eval looks answers up by the question alone.
    cache = config.use_cache and f"{config.use_cache}_{fingerprint(lm, config.model, config.model_args)}"
    settings = _settings(config)
    evaluation = Evaluation(max_length=getattr(lm, "max_length", None))
    for name in names:
        # lm-eval stores requests by the name of the task, but --metadata and the checkpoint decide what this package's tasks ask.
        requests = {} if tasks.is_ours(name) else config.cache_requests
        try:
            results = simple_evaluate(
                **settings,
                model=lm,
                tasks=[name],
                use_cache=cache,
                log_samples=True,
                evaluation_tracker=tracker,
                task_manager=tasks,
                **{name: requests.get(name, False) for name in _REQUESTS},
            )
        except Exception as error:  # whatever a task's data or code can raise
            if lm.world_size > 1:
                raise  # the other processes would wait for this one
            if len(names) == 1 and isinstance(error, _BUGS):
                raise  # nothing is saved by going on, and the traceback says more than a line
            evaluation.skipped[name] = _reason(error)
            logger.warning("task %s is skipped: %s", name, evaluation.skipped[name])
            logger.debug("task %s", name, exc_info=True)
            continue
        if results is not None:
            one = cast(Results, results)
            evaluation.cut.update(cut_inputs(lm, one))
            add_accuracy_per_token(lm, one)
            if not config.log_samples:
                del one["samples"]
            evaluation.add(one)
    return evaluation


def _settings(config: EvaluatorConfig) -> dict[str, Any]:
    """The settings that `simple_evaluate` takes by the name of their flag, and the seeds."""
    taken = inspect.signature(simple_evaluate).parameters
    each = ("model", "tasks", "use_cache", "log_samples", "cache_requests")  # these are decided for each task
    settings = {item.name: getattr(config, item.name) for item in fields(config) if item.name in taken}
    seeds = config.seed if isinstance(config.seed, list) else [None] * 4
    names = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    return {key: value for key, value in settings.items() if key not in each} | dict(zip(names, seeds, strict=True))


def _report(
    evaluation: Evaluation,
    config: EvaluatorConfig,
    tracker: EvaluationTracker,
    logs: Sequence[WandbLogger | TrackioLogger],
) -> None:
    """What lm-eval's command prints and writes, with what was skipped and cut beside it."""
    results = evaluation.results
    samples = results.pop("samples", {})
    results["config"].update(model=config.model, model_args=config.model_args)
    results.update(skipped=dict(evaluation.skipped), cut=dict(evaluation.cut), max_length=evaluation.max_length)
    if config.show_config:
        print(json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False))
    for log in logs:
        try:
            log.post_init(results)
            log.log_eval_result()
            if config.log_samples:
                log.log_eval_samples(samples)
        except Exception as error:  # a service on the network
            logger.warning("results could not be logged by %s: %s", type(log).__name__, error)
    tracker.save_results_aggregated(results, samples if config.log_samples else None)
    for task in results["configs"] if config.log_samples else ():
        tracker.save_results_samples(task, samples[task])
    if tracker.push_results_to_hub or tracker.push_samples_to_hub:
        tracker.recreate_metadata_card()

    shown = {key: value for key, value in config.model_args.items() if key != "trust_remote_code"}
    sizes = ",".join(map(str, results["config"].get("batch_sizes", [])))
    print(
        f"{config.model} ({shown}), gen_kwargs: ({config.gen_kwargs}), limit: {config.limit}, num_fewshot: {config.num_fewshot}, "
        f"batch_size: {config.batch_size}{f' ({sizes})' if sizes else ''}"
    )
    print(make_table(results))
    if "groups" in results:
        print(make_table(results, "groups"))
    for log in logs:
        log.run.finish() if isinstance(log, WandbLogger) else log.finish()


def _reason(error: Exception) -> str:
    """Why a task is skipped, in one line."""
    if isinstance(error, UserError):
        return str(error)
    lines = str(error).strip().splitlines()
    line = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if isinstance(error, ConnectionError):
        line += "; run it where the hub can be reached, or copy the data here (HF_HOME names its folder)"
    return line
