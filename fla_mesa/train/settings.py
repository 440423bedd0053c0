"""The flags of the recipe: its own, and all of transformers' TrainingArguments with this recipe's defaults.

The defaults follow the field's recipe for language models (arXiv 2506.05233, appendix G): AdamW (0.9, 0.98), weight decay
0.1, gradients clipped at norm 1, a linear warm-up, then a cosine to a tenth of the learning rate, bfloat16 where there is
a GPU.
"""

import difflib
import json
import math
import os
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.utils.import_utils import is_liger_kernel_available

from fla_mesa.data import source_names
from fla_mesa.errors import UserError, mistakes_of
from fla_mesa.models import zoo


@dataclass
class RecipeSettings:
    """The model and its data. `RecipeArguments` says how to train it."""

    _argument_group_name = "model and data"

    model: str = field(default="mesanet", metadata={"help": "Architecture; the end of this help lists all."})
    size: str = field(default="tiny", metadata={"help": "Model size; the end of this help lists all."})
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Changes to the model's configuration, as key=value,key=value or a JSON object, for example "
            "num_hidden_layers=4,hidden_size=128. Keys are those of the model's config.json."
        },
    )
    data: str = field(
        default="stdlib",
        metadata={
            "help": "Training data: a named source (the end of this help lists all), a text, parquet or JSON file, a "
            "folder of such files, or a Hugging Face hub dataset."
        },
    )
    validation: str | None = field(
        default=None,
        metadata={
            "help": "Validation data, in the same form as --data (default: the data's own validation split, or 5 %% "
            "held out of it if there is none)."
        },
    )
    data_config: str | None = field(
        default=None, metadata={"help": "Configuration of a hub dataset, or variant of a named source."}
    )
    text_column: str | None = field(
        default=None,
        metadata={"help": "Text column of a table (default: `text`, or the only column of text)."},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "Folder or hub name of a tokenizer (default: one token per byte)."},
    )
    seq_len: int | None = field(
        default=None, metadata={"help": "Tokens per block (default: 256 for text; other sources have their own)."}
    )
    predict_end_of_text: bool = field(
        default=False,
        metadata={
            "help": "Train and validate on the end-of-text token between documents too, so that the model learns to "
            "end its answers. By default the model only reads it, as in arXiv 2506.05233, G.3."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read --data during training, so that it may be larger than memory and disk. Works for parquet and JSON files and "
            "hub datasets; needs --max_steps. --num_train_epochs then limits the number of passes."
        },
    )
    shuffle_buffer: int | None = field(
        default=None, metadata={"help": "Number of blocks of a stream to shuffle together (default: 1024)."}
    )
    held_out_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Validation tokens for a stream (default: 524288). They come from --validation, the validation split, or the "
            "first documents of the data, which are then never trained on."
        },
    )
    eval_tokens: int = field(
        default=131_072,
        metadata={
            "help": "Validation tokens for evaluations during training, spread evenly over the data; 0 uses all."
        },
    )
    final_eval_tokens: int = field(
        default=0, metadata={"help": "Validation tokens for the final figures in metrics.json; 0 uses all."}
    )
    resume: bool = field(
        default=False,
        metadata={
            "help": "Continue from the last complete checkpoint in --output_dir; start from scratch if there is none."
        },
    )

    overwrite: bool = field(
        default=False,
        metadata={"help": "Replace an earlier run in --output_dir; it is deleted when training begins."},
    )

    def __post_init__(self) -> None:
        _check(not (self.resume and self.overwrite), "resume, overwrite", "both", "one of the two")
        _check(self.seq_len is None or self.seq_len >= 2, "seq_len", self.seq_len, "at least 2")
        for name in ("shuffle_buffer", "held_out_tokens"):
            value = getattr(self, name)
            _check(value is None or value >= 1, name, value, "1 or more")
            _check(value is None or self.streaming, name, value, "nothing without --streaming")
        for name in ("eval_tokens", "final_eval_tokens"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "0 (all) or more")


def _described(name: str) -> Mapping[str, Any]:
    """The help of TrainingArguments' field `name`."""
    return TrainingArguments.__dataclass_fields__[name].metadata


@dataclass
class RecipeArguments(TrainingArguments):
    """transformers' TrainingArguments with the recipe's defaults and stricter checks."""

    _argument_group_name = "training: transformers.TrainingArguments with this recipe's defaults"

    output_dir: str | None = field(default=None, metadata={"help": "Output folder (default: runs/<model>-<size>)."})
    num_train_epochs: float = field(default=1.0, metadata=_described("num_train_epochs"))
    learning_rate: float = field(default=3e-3, metadata=_described("learning_rate"))
    lr_scheduler_type: SchedulerType | str = field(
        default="cosine_with_min_lr", metadata=_described("lr_scheduler_type")
    )
    warmup_steps: float = field(default=0.05, metadata=_described("warmup_steps"))
    weight_decay: float = field(
        default=0.1,
        metadata={"help": "Weight decay; not applied to biases, norms and parameters marked `_no_weight_decay`."},
    )
    adam_beta2: float = field(default=0.98, metadata=_described("adam_beta2"))
    bf16: bool | None = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None,
        metadata={
            "help": "bfloat16 mixed precision (default: on if the GPU supports it).",
            "nargs": "?",
            "const": True,
        },
    )
    logging_steps: float = field(default=10, metadata=_described("logging_steps"))
    logging_nan_inf_filter: bool = field(default=False, metadata=_described("logging_nan_inf_filter"))
    disable_tqdm: bool | None = field(
        default=None, metadata={"help": "Print lines instead of a progress bar (default: when not in a terminal)."}
    )
    eval_strategy: str = field(default="steps", metadata=_described("eval_strategy"))
    eval_steps: float | None = field(default=0.1, metadata=_described("eval_steps"))
    save_steps: float = field(default=0.1, metadata=_described("save_steps"))
    save_total_limit: int | None = field(default=2, metadata=_described("save_total_limit"))
    # Every parameter of the zoo's models takes part in every step.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata=_described("ddp_find_unused_parameters"))
    do_train: bool = field(default=True, metadata={"help": "Always on, because this command trains."})
    shard: bool = field(
        default=False,
        metadata={
            "help": "Shard parameters, gradients and optimizer state over torchrun's processes (FSDP2, on GPUs and CPUs). Each process "
            "writes its piece of a checkpoint; `fla-mesa export` merges them. Without this flag each process holds a full copy."
        },
    )

    def __post_init__(self) -> None:
        _check(self.do_train and not self.do_predict, "do_train, do_predict", "another stage", "training alone")
        _check(self.learning_rate > 0 and math.isfinite(self.learning_rate), "learning_rate", self.learning_rate, "> 0")
        _check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        for name in ("adam_beta1", "adam_beta2"):
            _check(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        _check(self.dataloader_num_workers >= 0, "dataloader_num_workers", self.dataloader_num_workers, "0 or more")
        noise = self.neftune_noise_alpha
        _check(noise is None or noise >= 0, "neftune_noise_alpha", noise, "0 or more")
        smoothing = self.label_smoothing_factor
        _check(0 <= smoothing < 1, "label_smoothing_factor", smoothing, "in [0, 1)")
        if (
            self.use_liger_kernel and not is_liger_kernel_available()
        ):  # transformers would say so after run.json was written
            raise UserError("use_liger_kernel: needs another package: pip install liger-kernel")
        _check(self.max_steps != 0, "max_steps", self.max_steps, "1 or more, or -1 to count epochs")
        _check(self.max_steps > 0 or self.num_train_epochs > 0, "num_train_epochs", self.num_train_epochs, "> 0")

        # Said outright, so that what transformers grants a CPU that was asked for (bf16, gloo) is granted to the only one.
        self.use_cpu = on_cpu = self.use_cpu or not torch.accelerator.is_available()
        if on_cpu and (self.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"):
            # transformers would run plain data parallelism here and say nothing.
            raise UserError("fsdp: transformers' and accelerate's FSDP needs GPUs; --shard also works on CPUs")
        if on_cpu and self.fp16:  # transformers would compute in float32 and say nothing
            raise UserError("fp16: needs a GPU; on a CPU omit it or use --bf16")
        if self.bf16 is None:
            self.bf16 = not on_cpu and not self.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()
        if self.lr_scheduler_type == SchedulerType.COSINE_WITH_MIN_LR and self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = {"min_lr_rate": 0.1}
        with mistakes_of(ValueError, TypeError, RuntimeError, ImportError):  # transformers' own checks
            super().__post_init__()
        # In one process with several GPUs transformers would use DataParallel, and the batch would grow with them.
        self.idle_gpus = max(0, self.n_gpu - 1)
        self._n_gpu = min(1, self.n_gpu)
        if self.shard:
            self._check_shard()

    def _check_shard(self) -> None:
        for name in ("fsdp", "deepspeed", "auto_find_batch_size"):
            _check(not getattr(self, name), f"shard, {name}", "both", "one of the two")
        if self.world_size == 1:
            raise UserError("shard: needs several processes: torchrun --nproc_per_node N -m fla_mesa train --shard ...")

    @property
    def about_idle_gpus(self) -> str | None:
        """A sentence where there are GPUs that one process leaves idle."""
        if not self.idle_gpus:
            return None
        return (
            f"of {self.idle_gpus + 1} GPUs one process trains on one: torchrun --nproc_per_node {self.idle_gpus + 1} -m fla_mesa train ... "
            "uses all; a step then takes the sequences of all processes together"
        )

    @property
    def sequences_per_step(self) -> int:
        """Rows per optimizer step, over all processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size


def _check(holds: bool, name: str, received: Any, allowed: str) -> None:
    if not holds:
        raise UserError(f"{name}: allowed is {allowed}, got {received}")


def default_output_dir(model: str, size: str) -> str:
    """Default output folder of a run."""
    return os.path.join("runs", f"{model}-{size}")


class _Help(ArgumentDefaultsHelpFormatter):
    """Shows only defaults that exist."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parser(**changes: Any) -> HfArgumentParser:
    """The parser of `fla-mesa train`: first the recipe's own flags, then all of TrainingArguments.

    Args:
        changes: Arguments of ArgumentParser in place of this command's: its name, usage, description.
    """
    own = {
        "prog": "fla-mesa train",
        "usage": "fla-mesa train [--model NAME] [--size SIZE] [--data DATA] [--output_dir DIR] [--resume] [flags]",
        "description": "Train a language model and write it, its tokenizer, metrics.json and loss.png to --output_dir.",
        "epilog": f"Models: {', '.join(zoo.names())}. Sizes: {', '.join(zoo.sizes())}, or LAYERSxWIDTH such as 2x64. "
        f"Data: {', '.join(source_names())}.",
        "formatter_class": _Help,
        "allow_abbrev": False,
    }
    return HfArgumentParser([RecipeSettings, RecipeArguments], **{**own, **changes})  # pyright: ignore[reportArgumentType]


def read(flags: HfArgumentParser, argv: list[str]) -> dict[str, Any]:
    """Value of each flag by name. Exits with a message if a flag does not exist."""
    known, unknown = flags.parse_known_args(argv)
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], [f"--{name}" for name in vars(known)], n=1)
        flags.error(f"unknown: {' '.join(unknown)}" + (f" (did you mean {near[0]}?)" if near else ""))
    return vars(known)


def names() -> list[str]:
    """Names of all settings of a training."""
    return [item.name for kind in (RecipeSettings, RecipeArguments) for item in fields(kind) if item.init]


def build(values: Mapping[str, Any]) -> tuple[RecipeSettings, RecipeArguments]:
    """Settings objects from the values that :func:`read` returns; other values are ignored.

    Raises:
        UserError: A value is not allowed.
    """
    values = {**values, "output_dir": values["output_dir"] or default_output_dir(values["model"], values["size"])}

    def own(kind: type) -> dict[str, Any]:
        return {item.name: values[item.name] for item in fields(kind) if item.init}

    return RecipeSettings(**own(RecipeSettings)), RecipeArguments(**own(RecipeArguments))


def parse(argv: list[str]) -> tuple[RecipeSettings, RecipeArguments]:
    """Settings from a command line. Exits with a message if a flag does not exist.

    Raises:
        UserError: A value is not allowed.
    """
    return build(read(parser(), argv))


def words(values: Mapping[str, Any]) -> list[str]:
    """The command line of `fla-mesa train` that gives these values, without those that are defaults."""
    flags, line = parser(), []
    for name, value in values.items():
        if value != flags.get_default(name):
            line += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return line
