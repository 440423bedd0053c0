"""The one recipe: data, model, training, evaluation, results on disk."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset
from transformers import AutoModelForCausalLM, PreTrainedConfig, TrainerState, set_seed

from fla_mesa import plugins
from fla_mesa.data import DataRequest, Splits, load_data
from fla_mesa.errors import UserError, mistakes_of
from fla_mesa.json_files import write_json
from fla_mesa.models import zoo
from fla_mesa.models.stub import write_stub
from fla_mesa.train import folder, overrides, sharding
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
    """The model's configuration for the tokens of `splits`; without them, for bytes, to have the settings checked early.

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
    return overrides.apply(config, settings.config_overrides) if settings.config_overrides else config


def data_request(settings: RecipeSettings, say: Callable[[str], None]) -> DataRequest:
    """The data that the settings name."""
    return DataRequest(
        spec=settings.data,
        validation=settings.validation,
        config=settings.data_config,
        text_column=settings.text_column,
        tokenizer=settings.tokenizer,
        seq_len=settings.seq_len,
        predict_end_of_text=settings.predict_end_of_text,
        say=say,
    )


def evenly(rows: Dataset, count: int) -> Dataset:
    """`count` of the rows, evenly spread, or all of them if there are no more."""
    total = len(rows)  # pyright: ignore[reportArgumentType] (a data set of known length)
    return rows if count >= total else Subset(rows, np.linspace(0, total - 1, count).round().astype(int).tolist())


class Run:
    """A run made ready: everything that can be wrong with what was asked for has been found by `Run(...)`.

    Until `train` is called nothing is written; an output folder may have come into being, empty. Raises UserError for what was asked
    for, and OSError for files that cannot be read or written.
    """

    def __init__(
        self,
        settings: RecipeSettings,
        arguments: RecipeArguments,
        *,
        command: list[str] | None = None,
        say: Callable[[str], None] = print,
    ):
        self.settings, self.arguments = settings, arguments
        self.command = sys.argv if command is None else command
        self.say = say if arguments.process_index == 0 else lambda _: None
        self.folder = Path(str(arguments.output_dir))
        stored = self._open_folder()
        if stored is not None:
            plugins.load_those_of(self.folder)
        make_config(settings, None)
        self.splits = self._load_data()
        self.description = self._describe()
        self.checkpoint = self._find_checkpoint(stored)
        # Where nothing has been reached yet, a run begins anew, with other settings if they were corrected.
        if stored is not None and (self.checkpoint is not None or (self.folder / folder.METRICS_FILE).exists()):
            folder.check_same(self.folder, stored, self.description)
        self._check_best_metric()
        if not (wanted := needs_model(arguments)):
            check_optimization(arguments)
        self.trainer = self._make_trainer()
        if wanted:
            check_optimization(arguments, self.trainer.model)
        self.metrics: dict[str, Any] = {}  # what metrics.json holds, once trained

    def _open_folder(self) -> dict | None:
        if self.settings.resume or self.arguments.resume_from_checkpoint:
            return folder.stored_run(self.folder)
        (folder.check_removable if self.settings.overwrite else folder.check_free)(self.folder)
        return None

    def _load_data(self) -> Splits:
        request = data_request(self.settings, self.say)
        # The first process of a machine fills the caches on disk, the others read them.
        with self.arguments.main_process_first(desc="reading the data"):
            return load_data(request)

    def _describe(self) -> dict[str, Any]:
        """What must be the same for a run to go on. The data is what it holds, wherever that lies today."""
        settings, arguments = asdict(self.settings), self.arguments.to_dict()
        return {
            **{
                name: settings[name]
                for name in ("model", "size", "config_overrides", "tokenizer", "predict_end_of_text")
            },
            "data": f"sha256 {self.splits.sha256}",
            "seq_len": self.splits.seq_len,
            "sequences_per_step": self.arguments.sequences_per_step,
            **{name: arguments[name] for name in _TRAJECTORY},
        }

    def _find_checkpoint(self, stored: dict | None) -> Path | None:
        chosen = self.arguments.resume_from_checkpoint
        checkpoint = Path(chosen) if chosen else folder.latest_checkpoint(self.folder) if stored is not None else None
        if checkpoint is not None:
            if stored is None or checkpoint.resolve().parent != self.folder.resolve():
                raise UserError(f"resume_from_checkpoint: {checkpoint} is not of the run in {self.folder}")
            folder.check_resumable(checkpoint)
            sharding.check_kind(checkpoint, self.arguments.shard)
        return checkpoint

    def _check_best_metric(self) -> None:
        """Raises UserError for a --metric_for_best_model that no evaluation gives; the Trainer would find out at the first."""
        name = self.arguments.metric_for_best_model
        figures = ["loss", "accuracy"] + (["bits_per_byte"] if self.splits.bytes_per_token is not None else [])
        if name is not None and name.removeprefix("eval_") not in figures:
            raise UserError(f"metric_for_best_model: allowed are {', '.join(figures)}; got {name!r}")

    def _make_trainer(self) -> RecipeTrainer:
        set_seed(self.arguments.seed)
        model = AutoModelForCausalLM.from_config(make_config(self.settings, self.splits))
        pad = self.splits.special_ids["pad_token_id"]
        model.config.pad_token_id = pad
        if model.generation_config is not None:
            model.generation_config.pad_token_id = pad
        count = parameter_counts(model)["parameters"]
        self.say(f"model: {self.settings.model} {self.settings.size}, {count:,} parameters")
        trainer = ShardedTrainer if self.arguments.shard else RecipeTrainer
        with mistakes_of(
            ValueError, RuntimeError, ImportError
        ):  # what transformers refuses of this machine or these settings
            return trainer(model, self.arguments, self.splits, self._validation(self.settings.eval_tokens))

    def _validation(self, tokens: int) -> Dataset:
        """Held-out rows of so many tokens, or all for 0."""
        rows = self.splits.validation
        return evenly(rows, max(1, tokens // self.splits.seq_len)) if tokens else rows

    def train(self) -> dict[str, Any]:
        """Trains, evaluates, saves, and returns what metrics.json holds.

        Raises Diverged if the loss is not finite, and Interrupted on Ctrl-C or SIGTERM; the last complete checkpoint
        stays usable either way.
        """
        trainer, stop = self.trainer, SignalStop(self.trainer)
        trainer.add_callback(stop)
        with signals_to(stop.receive):
            self._begin()
            with self._recorded():
                if not self._nothing_left():
                    with stop.training():
                        trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
                trainer.save_model(str(self.folder))  # before an evaluation that may cast it (bf16_full_eval)
                if self.arguments.should_save:
                    write_stub(self.folder)
                tokens = self.settings.final_eval_tokens
                self.say(f"validating on {f'{tokens:,} tokens of' if tokens else 'all'} held-out data")
                final = trainer.evaluate(self._validation(tokens), metric_key_prefix="final")
                self.metrics = self._report(final)
        return self.metrics

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """What happens inside is told in status.json."""
        status, state = StatusWriter(self.folder, writes=self.arguments.should_save), lambda: self.trainer.state
        self.trainer.add_callback(status)
        try:
            yield
        except Diverged as error:
            status.end("diverged", state(), str(error), error.step)
            raise
        except Interrupted as stop:
            status.end("stopped", state(), f"by {stop.name}")
            raise
        except BaseException as error:
            status.end("failed", state(), f"{type(error).__name__}: {error}")
            raise
        status.end("done", state())

    def _begin(self) -> None:
        """The first writing: from here on the folder is this run's."""
        self.trainer.accelerator.wait_for_everyone()  # until all have seen the folder as it was
        if self.arguments.should_save:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.settings.overwrite:
                folder.remove_run(self.folder)
            for name in folder.remove_incomplete(self.folder):
                self.say(f"{name} was being written when the run stopped: removed")
            write_json(self.folder / folder.RUN_FILE, self.description | {"plugins": list(plugins.loaded())})
        if self.checkpoint is not None:
            self.say(f"going on from {self.checkpoint}")
        elif self.settings.resume:
            self.say(f"no checkpoint in {self.folder} yet: starting")

    def _nothing_left(self) -> bool:
        """Whether the checkpoint is that of the last step; its model is then loaded. The Trainer would do one step more."""
        if self.checkpoint is None:
            return False
        state = TrainerState.load_from_json(str(self.checkpoint / "trainer_state.json"))
        steps = self.trainer.set_initial_training_values(self.arguments, self.trainer.get_train_dataloader())[-1]
        if state.global_step < steps:
            return False
        self.say(f"all {state.global_step} steps have been done")
        self.trainer.state = state
        best = state.best_model_checkpoint if self.arguments.load_best_model_at_end else None
        self.trainer._load_from_checkpoint(best or str(self.checkpoint))
        return True

    def _report(self, final: dict[str, float]) -> dict[str, Any]:
        metrics = collect(self.trainer, self.settings, self.splits, final, self.command)
        if self.arguments.should_save:
            title = f"{self.settings.model} {self.settings.size} on {self.settings.data}"
            loss_curve(metrics["history"], title, self.folder / "loss.png")
            write_json(self.folder / folder.METRICS_FILE, metrics)  # last: it says that the run is finished
        return metrics
