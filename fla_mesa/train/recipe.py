"""The training recipe: `prepare` reads and builds, `train` trains, evaluates and writes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset
from transformers import AutoModelForCausalLM, PreTrainedConfig, TrainerState, set_seed

from fla_mesa import plugins
from fla_mesa.data import BlockStream, DataRequest, Splits, load_data
from fla_mesa.errors import UserError, mistakes_of
from fla_mesa.json_files import write_json
from fla_mesa.models import zoo
from fla_mesa.models.card import write_card
from fla_mesa.models.regression import RegressionConfig
from fla_mesa.models.remote_code import write_remote_code
from fla_mesa.train import overrides, run_folder, sharding, stream
from fla_mesa.train.interrupt import Interrupted, SignalStop, signals_to
from fla_mesa.train.metrics import collect, parameter_counts
from fla_mesa.train.optimization import check_optimization, needs_model
from fla_mesa.train.plot import loss_curve
from fla_mesa.train.settings import RecipeArguments, RecipeSettings
from fla_mesa.train.sharded_trainer import ShardedTrainer
from fla_mesa.train.status import StatusWriter
from fla_mesa.train.trainer import Diverged, RecipeTrainer

# What, beside the settings, makes a run the run it is. Steps and epochs are not among them: a run may be prolonged.
_TRAJECTORY = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("seed", "data_seed", "train_sampling_strategy", "dataloader_drop_last"),
    *("bf16", "fp16", "label_smoothing_factor", "neftune_noise_alpha"),
)


def make_config(settings: RecipeSettings, splits: Splits | None) -> PreTrainedConfig:
    """The model's configuration for the tokens of `splits`; without them, for bytes, to check the settings early.

    Raises UserError for a model, size or override that does not exist or is out of range.
    """
    ids = splits.special_ids if splits else {}
    config = zoo.build_config(
        settings.model,
        settings.size,
        vocab_size=splits.vocab_size if splits else 257,
        max_position_embeddings=splits.seq_len if splits else 256,
        bos_token_id=ids.get("bos_token_id"),
        eos_token_id=ids.get("eos_token_id"),
        # Where padding is a token that also means something, as `<|endoftext|>` does, it must learn like any other, and a
        # model that knows of padding would not let it. Generation needs to know: `_make_trainer` says it afterwards.
        pad_token_id=None,
    )
    if settings.config_overrides:
        config = overrides.apply(config, settings.config_overrides)
    return RegressionConfig(splits.features, config) if splits is not None and splits.features is not None else config


def data_request(settings: RecipeSettings, say: Callable[[str], None]) -> DataRequest:
    """The data that the settings ask for."""
    return DataRequest(
        spec=settings.data,
        validation=settings.validation,
        config=settings.data_config,
        text_column=settings.text_column,
        tokenizer=settings.tokenizer,
        seq_len=settings.seq_len,
        predict_end_of_text=settings.predict_end_of_text,
        streaming=stream.requested(asdict(settings)),
        say=say,
    )


def evenly(rows: Dataset, count: int) -> Dataset:
    """`count` rows, evenly spread, or all if there are no more."""
    total = len(rows)  # pyright: ignore[reportArgumentType] (a data set of known length)
    return rows if count >= total else Subset(rows, np.linspace(0, total - 1, count).round().astype(int).tolist())


@dataclass(frozen=True)
class Prepared:
    """A run that :func:`prepare` has made ready for :func:`train`.

    Attributes:
        settings, arguments: What was asked for.
        command: The command line that metrics.json records.
        say: Tells the user a sentence, in the first process.
        folder: The run's, in which nothing has been written yet.
        splits: The data, tokenised.
        description: What makes the run what it is: run.json.
        checkpoint: Where it goes on from, or None.
        trainer: With a model that is freshly initialised, whatever the checkpoint.
    """

    settings: RecipeSettings
    arguments: RecipeArguments
    command: list[str]
    say: Callable[[str], None]
    folder: Path
    splits: Splits
    description: dict[str, Any]
    checkpoint: Path | None
    trainer: RecipeTrainer

    def validation(self, tokens: int) -> Dataset:
        """Validation rows with this many tokens; all for 0."""
        return _validation(self.splits, tokens)


def prepare(
    settings: RecipeSettings,
    arguments: RecipeArguments,
    *,
    command: list[str] | None = None,
    say: Callable[[str], None] = print,
) -> Prepared:
    """Reads the data, builds the model, and checks everything that was asked for. Writes nothing.

    Raises:
        UserError: What was asked for is not allowed, or cannot be had on this machine.
        OSError: A file cannot be read.
    """
    say = say if arguments.process_index == 0 else lambda _: None
    if arguments.about_idle_gpus:
        say(arguments.about_idle_gpus)
    output = Path(str(arguments.output_dir))
    stored = _open_folder(output, settings, arguments)
    if stored is not None:
        plugins.load_those_of(output)
    make_config(settings, None)
    if settings.streaming:
        stream.check(arguments)
    # The first process of a machine fills the caches on disk, the others read them.
    with arguments.main_process_first(desc="reading the data"):
        splits = stream.arrange(load_data(data_request(settings, say)), arguments)
    description = _describe(settings, arguments, splits)
    checkpoint = _find_checkpoint(output, arguments, stored)
    # Where nothing has been reached yet, a run begins anew, with other settings if they were corrected.
    if stored is not None and (checkpoint is not None or (output / run_folder.METRICS_FILE).exists()):
        run_folder.check_same(output, stored, description)
    if checkpoint is not None:
        stream.go_on(splits, checkpoint)
    _check_best_metric(arguments, splits)
    if not (wanted := needs_model(arguments)):
        check_optimization(arguments)
    trainer = _make_trainer(settings, arguments, splits, say)
    if wanted:
        check_optimization(arguments, trainer.model)
    command = sys.argv if command is None else command
    return Prepared(settings, arguments, command, say, output, splits, description, checkpoint, trainer)


def train(run: Prepared) -> dict[str, Any]:
    """Trains, evaluates and saves; returns the contents of metrics.json.

    Raises:
        Diverged: The loss is not finite.
        UserError: A stream of data ended before the last step. There is a checkpoint.
        Interrupted: On Ctrl-C or SIGTERM. The last complete checkpoint stays usable either way.
    """
    trainer, stop = run.trainer, SignalStop(run.trainer)
    trainer.add_callback(stop)
    with signals_to(stop.receive):
        _begin(run)
        with _recorded(run):
            if _steps_left(run):
                with stop.training():
                    trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
                stream.raise_if_ended(trainer, trainer.stream_end, run.settings.data)
            else:
                _load_finished(run)
            trainer.save_model(str(run.folder))  # before an evaluation that may cast it (bf16_full_eval)
            if run.arguments.should_save:
                write_remote_code(run.folder)
            tokens = run.settings.final_eval_tokens
            run.say(f"validating on {f'{tokens:,} tokens of' if tokens else 'all'} held-out data")
            final = trainer.evaluate(run.validation(tokens), metric_key_prefix="final")
            return _report(run, final)


# Preparing


def _open_folder(output: Path, settings: RecipeSettings, arguments: RecipeArguments) -> dict | None:
    """The stored record of a run to continue; None if there is none. Raises UserError if there must not be one."""
    if settings.resume or arguments.resume_from_checkpoint:
        return run_folder.stored_run(output)
    (run_folder.check_removable if settings.overwrite else run_folder.check_free)(output)
    return None


def _describe(settings: RecipeSettings, arguments: RecipeArguments, splits: Splits) -> dict[str, Any]:
    """What must be the same for a run to continue. Data is compared by its contents, wherever it lies."""
    chosen, how = asdict(settings), arguments.to_dict()
    return {
        **{name: chosen[name] for name in ("model", "size", "config_overrides", "tokenizer", "predict_end_of_text")},
        "data": f"sha256 {splits.sha256}",
        "seq_len": splits.seq_len,
        "sequences_per_step": arguments.sequences_per_step,
        **({"shuffle_buffer": splits.train.window} if isinstance(splits.train, BlockStream) else {}),
        **{name: how[name] for name in _TRAJECTORY},
    }


def _find_checkpoint(output: Path, arguments: RecipeArguments, stored: dict | None) -> Path | None:
    """The checkpoint to continue from. Raises UserError if it cannot be used."""
    chosen = arguments.resume_from_checkpoint
    checkpoint = Path(chosen) if chosen else run_folder.latest_checkpoint(output) if stored is not None else None
    if checkpoint is not None:
        if stored is None or checkpoint.resolve().parent != output.resolve():
            raise UserError(f"resume_from_checkpoint: {checkpoint} does not belong to the run in {output}")
        run_folder.check_resumable(checkpoint)
        sharding.check_kind(checkpoint, arguments.shard)
    return checkpoint


def _check_best_metric(arguments: RecipeArguments, splits: Splits) -> None:
    """Raises UserError for a --metric_for_best_model that no evaluation gives, before the Trainer would find out."""
    name = arguments.metric_for_best_model
    figures = ["loss", "accuracy"] if splits.features is None else ["loss"]
    figures += ["bits_per_byte"] if splits.bytes_per_token is not None else []
    if name is not None and name.removeprefix("eval_") not in figures:
        raise UserError(f"metric_for_best_model: allowed are {', '.join(figures)}; got {name!r}")


def _make_trainer(
    settings: RecipeSettings, arguments: RecipeArguments, splits: Splits, say: Callable[[str], None]
) -> RecipeTrainer:
    set_seed(arguments.seed)
    model = AutoModelForCausalLM.from_config(make_config(settings, splits))
    pad = splits.special_ids["pad_token_id"]
    model.config.pad_token_id = pad
    if getattr(model, "generation_config", None) is not None:  # a model of vectors generates nothing
        model.generation_config.pad_token_id = pad
    count = parameter_counts(model)["parameters"]
    say(f"model: {settings.model} {settings.size}, {count:,} parameters")
    trainer = ShardedTrainer if arguments.shard else RecipeTrainer
    with mistakes_of(
        ValueError, RuntimeError, ImportError
    ):  # what transformers refuses of this machine or these settings
        return trainer(model, arguments, splits, _validation(splits, settings.eval_tokens))


def _validation(splits: Splits, tokens: int) -> Dataset:
    return evenly(splits.validation, max(1, tokens // splits.seq_len)) if tokens else splits.validation


# Training


@contextmanager
def _recorded(run: Prepared) -> Iterator[None]:
    """Records what happens inside in status.json."""
    status = StatusWriter(run.folder, writes=run.arguments.should_save)
    run.trainer.add_callback(status)
    try:
        yield
    except Diverged as error:
        status.end("diverged", run.trainer.state, str(error), error.step)
        raise
    except Interrupted as stop:
        status.end("stopped", run.trainer.state, f"by {stop.name}")
        raise
    except BaseException as error:
        status.end("failed", run.trainer.state, f"{type(error).__name__}: {error}")
        raise
    status.end("done", run.trainer.state)


def _begin(run: Prepared) -> None:
    """The first write: from here on the folder belongs to this run."""
    run.trainer.accelerator.wait_for_everyone()  # until all have seen the folder as it was
    if run.arguments.should_save:
        run.folder.mkdir(parents=True, exist_ok=True)
        if run.settings.overwrite:
            run_folder.remove_run(run.folder)
        for name in run_folder.remove_incomplete(run.folder):
            run.say(f"{name} was being written when the run stopped: removed")
        write_json(run.folder / run_folder.RUN_FILE, run.description | {"plugins": list(plugins.loaded())})
    if run.checkpoint is not None:
        run.say(f"going on from {run.checkpoint}")
    elif run.settings.resume:
        run.say(f"no checkpoint in {run.folder} yet: starting")


def _checkpoint_state(checkpoint: Path) -> TrainerState:
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def _steps_left(run: Prepared) -> bool:
    """Whether any step is left. From a checkpoint of the last step the Trainer would do one more."""
    if run.checkpoint is None:
        return True
    trainer = run.trainer
    steps = trainer.set_initial_training_values(run.arguments, trainer.get_train_dataloader())[-1]
    return _checkpoint_state(run.checkpoint).global_step < steps


def _load_finished(run: Prepared) -> None:
    """Loads the state and weights of a run that has done all its steps into the trainer."""
    assert run.checkpoint is not None
    state = run.trainer.state = _checkpoint_state(run.checkpoint)
    run.say(f"all {state.global_step} steps have been done")
    best = state.best_model_checkpoint if run.arguments.load_best_model_at_end else None
    run.trainer._load_from_checkpoint(best or str(run.checkpoint))


def _report(run: Prepared, final: dict[str, float]) -> dict[str, Any]:
    metrics = collect(run.trainer, run.settings, run.splits, final, run.command)
    if run.arguments.should_save:
        title = f"{run.settings.model} {run.settings.size} on {run.settings.data}"
        loss_curve(metrics["history"], title, run.folder / "loss.png")
        model: Any = run.trainer.accelerator.unwrap_model(
            run.trainer.model
        )  # its type depends on what else is installed
        write_card(run.folder, model, metrics)
        write_json(run.folder / run_folder.METRICS_FILE, metrics)  # last: it says that the run is finished
    return metrics
