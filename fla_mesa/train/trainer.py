"""transformers' Trainer with what a language-model run needs: exempt parameters, exact validation, complete checkpoints."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, ProgressCallback, Trainer, default_data_collator
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import EvalLoopOutput

from fla_mesa.data import Splits
from fla_mesa.layers.convergence import Solves, counting, has_solver
from fla_mesa.train import run_folder, stream
from fla_mesa.train.decay import exempt_parameters
from fla_mesa.train.evaluation import ValidationFigures, row_sums, squared_errors
from fla_mesa.train.progress import Progress, no_bars
from fla_mesa.train.settings import RecipeArguments
from fla_mesa.train.throughput import Throughput


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""

    def __init__(self, step: int):
        super().__init__(f"the loss was no longer a finite number at step {step}: try a lower --learning_rate")
        self.step = step


class RecipeTrainer(Trainer):
    """Trains a causal language model on `splits`.

    Raises Diverged as soon as a logged or saved loss is not finite, before a checkpoint of it is written.
    """

    def __init__(self, model: PreTrainedModel, args: RecipeArguments, splits: Splits, eval_dataset: Dataset):
        self._end_of_text = splits.special_ids["eos_token_id"]
        self.throughput = Throughput()
        self.recipe = args
        self._solves: Solves | None = None  # of the steps since the last entry of the log
        self._has_solver = has_solver(model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=splits.train,
            eval_dataset=eval_dataset,  # pyright: ignore[reportArgumentType]
            processing_class=splits.tokenizer,
            data_collator=default_data_collator,
            compute_metrics=ValidationFigures(splits.bytes_per_token, of_tokens=splits.features is None),
            callbacks=[self.throughput],
        )
        for shown_by_transformers in (ProgressCallback, PrinterCallback):
            self.remove_callback(shown_by_transformers)
        self.add_callback(Progress(self.throughput, lines=bool(args.disable_tqdm)))
        self.stream_end = stream.StopAtItsEnd()
        self.add_callback(self.stream_end)
        if self.label_smoother is not None:
            self.label_smoother = _shifted(self.label_smoother)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Parameters that :mod:`fla_mesa.train.decay` does not exempt, however the model is wrapped; transformers goes by names."""
        exempt = exempt_parameters(model)
        return [name for name, _ in model.named_parameters() if name not in exempt]

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass; counts its tokens."""
        self.throughput.add(inputs["labels"].numel())
        return super().training_step(model, inputs, num_items_in_batch)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; also counts the Mesa layers' solves."""
        with counting(self.model) as self._solves:  # pyright: ignore[reportArgumentType]
            return super().train(*args, **kwargs)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """As the Trainer's, with the solver's figures on the same rows."""
        with counting(self.model) as solves:  # pyright: ignore[reportArgumentType]
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if output.metrics is not None:
            output.metrics.update(self._convergence(solves, f"{metric_key_prefix}_"))
        return output

    def _convergence(self, solves: Solves, prefix: str = "") -> dict[str, float]:
        """The solver's figures over all processes, by their names in the log; empty for a model that solves nothing."""
        if not self._has_solver:
            return {}
        found = solves.read(lambda sums: self.accelerator.reduce(sums.to(self.args.device), "sum").cpu())  # pyright: ignore
        if found is None:
            return {}
        figures = {"cg_iterations": found.iterations, "cg_unsolved": found.unsolved}
        return {prefix + name: value for name, value in figures.items() if value is not None}

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict:
        """As the Trainer's, on every row whatever `dataloader_drop_last` says; not counted as training time."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            with self.throughput.paused():
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self.args.dataloader_drop_last = drop_last

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Returns sums over each row instead of logits, which would not fit into memory, and counts instead of labels."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs).logits
        if labels.is_floating_point():
            return None, *squared_errors(logits, labels)
        return None, *row_sums(logits, labels, self._end_of_text)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's, with the solver's figures next to the loss.

        Raises:
            Diverged: The loss is not finite.
        """
        if "loss" in logs and self._solves is not None:
            logs |= self._convergence(self._solves)
        super().log(logs, start_time)
        if any(name.endswith("loss") and not math.isfinite(value) for name, value in logs.items()):
            raise Diverged(self.state.global_step)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """As the Trainer's, without tied weights, which no file holds twice."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As the Trainer's, without a progress bar per file."""
        with no_bars():
            super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if not torch.isfinite(self._tr_loss):
            raise Diverged(self.state.global_step)
        run = Path(self._get_output_dir(trial))
        checkpoint = run / f"checkpoint-{self.state.global_step}"
        with self.throughput.paused():
            if self.args.should_save:
                (checkpoint / run_folder.COMPLETE_FILE).unlink(missing_ok=True)
            # The Trainer would remove old checkpoints before the new one is declared whole.
            limit, self.args.save_total_limit = self.args.save_total_limit, None
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
            stream.save(self, checkpoint)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                run_folder.mark_complete(checkpoint)
                best = self.state.best_model_checkpoint
                run_folder.keep_latest(run, limit, [Path(best)] if best else [])


def _shifted(smoother: Callable) -> Callable:
    """Label smoothing on shifted labels, which the Trainer does only for the models it knows."""

    def smooth(outputs: Any, labels: torch.Tensor, shift_labels: bool = True, **options: Any) -> torch.Tensor:
        return smoother(outputs, labels, shift_labels=True, **options)

    return smooth
