"""The recipe's trainer for a sharded model."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from fla_mesa.train import sharding
from fla_mesa.train.trainer import RecipeTrainer


class ShardedTrainer(RecipeTrainer):
    """As :class:`RecipeTrainer`, for several processes that each hold a share of the model.

    transformers' own FSDP needs GPUs; on a CPU it trains whole copies instead and says nothing.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        model: Any = self.model
        sharding.shard(model, self.args.device)
        # Mixed precision as for any model, and no DistributedDataParallel around it when training begins.
        self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        model._is_accelerate_prepared = True

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        """PyTorch's own optimizer, inside accelerate's."""
        return getattr(self.optimizer, "optimizer", self.optimizer)  # pyright: ignore[reportReturnType]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves a folder that `from_pretrained` reads, from the first process; for a checkpoint, a piece from each."""
        folder = Path(str(output_dir or self.args.output_dir))
        if not _internal_call:
            state = sharding.gather(self.model)  # pyright: ignore[reportArgumentType]
            if self.args.should_save:
                self._save(str(folder), state)
            return
        model: Any = self.model
        if self.args.should_save:
            model.config.save_pretrained(folder)
            if model.can_generate():
                model.generation_config.save_pretrained(folder)
            tokenizer: Any = self.processing_class
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
        sharding.save_weights(model, folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        sharding.save_optimizer(self.model, self._optimizer, Path(output_dir))  # pyright: ignore[reportArgumentType]
        if self.args.should_save:
            scheduler: Any = self.lr_scheduler
            torch.save(scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        sharding.load_weights(self.model if model is None else model, Path(resume_from_checkpoint))  # pyright: ignore[reportArgumentType]

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        scheduler: Any = self.lr_scheduler
        sharding.load_optimizer(self.model, self._optimizer, Path(checkpoint))  # pyright: ignore[reportArgumentType]
        scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm
