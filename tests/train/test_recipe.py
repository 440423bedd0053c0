"""Whole runs: what they leave behind, how they are killed, stopped and resumed, and what they refuse."""

import errno
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from fla_mesa.data import Splits, TokenBlocks, register_source, sources
from fla_mesa.errors import DISK_FULL
from fla_mesa.train import run_folder
from fla_mesa.train.command import main
from fla_mesa.train.interrupt import Interrupted, SignalStop
from fla_mesa.train.recipe import prepare, train
from fla_mesa.train.settings import parse
from fla_mesa.train.status import read_status
from fla_mesa.train.trainer import Diverged
from tests.train.conftest import TINY


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def metrics_of(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def logs_of(run: Path) -> list[dict]:
    """What the Trainer logged until its last checkpoint."""
    checkpoint = run_folder.latest_checkpoint(run)
    assert checkpoint is not None
    return json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]


def listing(root: Path) -> dict[str, float]:
    return {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in root.rglob("*")}


def start(arguments: list[str], before: str = "", launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """`fla-mesa train` in a process of its own, after the statements `before`."""
    program = (
        ["-m", "fla_mesa", "train"]
        if not before
        else ["-c", f"{before}\nimport sys\nfrom fla_mesa.cli import main\nsys.exit(main(['train', *sys.argv[1:]]))"]
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *launcher, *program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


# What a run leaves behind


def test_results_on_disk(undisturbed):
    names = {path.name for path in undisturbed.iterdir()}
    results = {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "metrics.json",
        "loss.png",
        "README.md",
        "run.json",
        "load_fla_mesa.py",
    }
    assert results <= names
    assert {name for name in names if name.startswith("checkpoint")} == {
        "checkpoint-8",
        "checkpoint-12",
    }  # two are kept
    assert not [name for name in names if name.endswith(".tmp")]
    assert (undisturbed / "loss.png").read_bytes().startswith(b"\x89PNG")
    tokenizer = AutoTokenizer.from_pretrained(undisturbed)
    model = AutoModelForCausalLM.from_pretrained(undisturbed)
    assert type(model).__name__ == "MesaNetForCausalLM"
    assert model.config.eos_token_id == tokenizer.eos_token_id == 256
    generated = model.generate(**tokenizer("the mesa", return_tensors="pt"), max_new_tokens=3, do_sample=False)
    assert generated.shape == (1, 11)


def test_metrics(undisturbed, text):
    metrics = metrics_of(undisturbed)
    model = AutoModelForCausalLM.from_pretrained(undisturbed)
    assert metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert metrics["parameters_without_embeddings"] == metrics["parameters"] - 257 * 32  # tied
    assert metrics["steps"] == 12 and metrics["sequences_per_step"] == 4 and metrics["seq_len"] == 32
    assert metrics["tokens_per_second"] > 0 and metrics["seed"] == 42
    assert metrics["data"]["source"] == str(text) and re.fullmatch("[0-9a-f]{64}", metrics["data"]["sha256"])
    assert metrics["versions"]["torch"] == version("torch") and metrics["versions"]["flash-linear-attention"]
    assert metrics["settings"]["learning_rate"] == 3e-3 and metrics["settings"]["model"] == "mesanet"
    assert [step for step, _ in metrics["history"]["train"]] == [2, 4, 6, 8, 10, 12]
    assert [step for step, _ in metrics["history"]["validation"]] == [6, 12]
    first, last = metrics["history"]["train"][0][1], metrics["train_loss"]
    assert last < first - 0.5 and metrics["loss"] < first - 0.5  # it learns


def test_the_solver_s_figures_stand_beside_the_loss(undisturbed):
    solver, logged = metrics_of(undisturbed)["solver"], logs_of(undisturbed)
    assert 0 < solver["cg_iterations"] < 30 and solver["cg_unsolved"] == 0
    assert [step for step, _ in solver["history"]["cg_iterations"]] == [2, 4, 6, 8, 10, 12]
    assert all(0 < steps < 30 for _, steps in solver["history"]["cg_iterations"])
    assert {"cg_iterations", "cg_unsolved"} <= next(entry.keys() for entry in logged if "loss" in entry)
    assert {"eval_cg_iterations", "eval_cg_unsolved"} <= next(entry.keys() for entry in logged if "eval_loss" in entry)


@pytest.mark.parametrize(
    ("changes", "said"), [("max_cg_step_training=1", 1), ("max_cg_step_training=1,cg_tolerance=1.0", 0)]
)
def test_too_few_steps_of_the_solver_are_said_once(flags, text, tmp_path, capsys, changes, said):
    short = ("--max_steps", 4, "--logging_steps", 1, "--config_overrides", f"{TINY},{changes}")
    assert main(flags(text, tmp_path / "run", *short)) == 0
    shown = capsys.readouterr().err
    assert shown.count("of the Mesa layers' solves ended above their tolerance after 1 steps") == said
    assert shown.count("raise max_cg_step_training or") == said
    assert (" unsolved)" in shown) == bool(said)
    assert (metrics_of(tmp_path / "run")["solver"]["cg_unsolved"] > 0.05) == bool(said)


def test_a_model_without_a_solver_has_no_figures_of_one(flags, text, tmp_path, capsys):
    assert main(flags(text, tmp_path / "run", "--model", "matched-delta_net", "--max_steps", 2)) == 0
    assert metrics_of(tmp_path / "run")["solver"] == {"cg_iterations": None, "cg_unsolved": None, "history": {}}
    assert "iterations" not in capsys.readouterr().err


def test_loss_and_bits_per_byte_by_hand(flags, undisturbed, text):
    """The validation blocks (the last one not full) through the saved model, one token after the other."""
    run = prepare(*parse(flags(text, undisturbed, "--resume")), say=lambda _: None)
    validation = run.splits.validation
    assert (validation[len(validation) - 1]["labels"] == -100).any()
    model = AutoModelForCausalLM.from_pretrained(undisturbed).eval()
    nats = right = tokens = text_bytes = 0
    for block in validation:
        kept = (block["labels"] != -100).sum()
        ids = block["input_ids"][:kept]
        with torch.no_grad():
            scores = model(ids[None]).logits[0, :-1].double().log_softmax(-1)
        nats -= scores.gather(1, ids[1:, None]).sum().item()
        right += (scores.argmax(1) == ids[1:]).sum().item()
        tokens += len(ids) - 1
        text_bytes += (ids[1:] != 256).sum().item()
    metrics = metrics_of(undisturbed)
    assert metrics["loss"] == pytest.approx(nats / tokens, rel=1e-6)
    assert metrics["accuracy"] == pytest.approx(right / tokens, rel=1e-6)
    assert metrics["bits_per_byte"] == pytest.approx(nats / torch.tensor(2.0).log().item() / text_bytes, rel=1e-6)


def test_validation_does_not_depend_on_its_batch_size(flags, undisturbed, text):
    run = prepare(*parse(flags(text, undisturbed, "--resume", "--per_device_eval_batch_size", 3)), say=lambda _: None)
    run.trainer._load_from_checkpoint(str(undisturbed / f"checkpoint-{12}"))
    again = run.trainer.evaluate(run.splits.validation)
    assert again["eval_loss"] == pytest.approx(metrics_of(undisturbed)["loss"], rel=1e-6)


# Killed, stopped, resumed


def test_killed_while_writing_a_checkpoint_then_resumed_is_bit_exact(flags, undisturbed, text, tmp_path, capfd):
    kill = """
import os, signal, transformers
def half_written(self, output_dir):
    if self.state.global_step == 8:
        with open(os.path.join(output_dir, "optimizer.pt"), "wb") as file:
            file.write(b"PK")
        os.kill(os.getpid(), signal.SIGKILL)
    complete(self, output_dir)
complete = transformers.Trainer._save_optimizer_and_scheduler
transformers.Trainer._save_optimizer_and_scheduler = half_written
"""
    run = tmp_path / "run"
    process = start(flags(text, run), before=kill)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert (run / "checkpoint-8" / "optimizer.pt").exists() and not (run / "metrics.json").exists()
    assert run_folder.latest_checkpoint(run) == run / "checkpoint-4"

    capfd.readouterr()
    assert main(flags(text, run, "--resume")) == 0
    said = capfd.readouterr().out
    assert "checkpoint-8 was being written when the run stopped: removed" in said
    assert f"going on from {run / 'checkpoint-4'}" in said
    assert_same_weights(undisturbed, run)
    one, other = metrics_of(undisturbed), metrics_of(run)
    assert one["loss"] == other["loss"] and one["history"] == other["history"]


def test_sigterm_saves_says_how_to_go_on_and_exits_143(flags, text, tmp_path):
    run = tmp_path / "run"
    process = start(flags(text, run, "--max_steps", 5000, "--save_steps", 5000, "--eval_strategy", "no"))
    for line in process.stderr:
        if line.startswith("step"):
            process.send_signal(signal.SIGTERM)
            break
    output, errors = process.communicate()
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    checkpoint = run_folder.latest_checkpoint(run)
    assert checkpoint is not None
    assert f"stopped by SIGTERM: to continue from {checkpoint}, run the same command with --resume" in output
    run_folder.check_resumable(checkpoint)
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert checkpoint.name == f"checkpoint-{state['global_step']}" and state["global_step"] < 5000


def test_a_signal_while_something_is_printed(monkeypatch):
    """As it may come at any time: Python's buffers refuse to be written to from a handler that interrupted their writing."""
    stop = SignalStop(SimpleNamespace(args=SimpleNamespace(world_size=1)))

    class Terminal(io.RawIOBase):
        def writable(self):
            return True

        def write(self, text):
            if stop._received is None:
                stop.receive(signal.SIGTERM)
            return len(text)

    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Terminal()), line_buffering=True))
    with pytest.raises(Interrupted), stop.training():
        print("step 1", file=sys.stderr, flush=True)


class SignalAt(TrainerCallback):
    """Raises a signal in this process at a step, as the user would."""

    def __init__(self, number: int, step: int, during: str):
        self.number, self.step, self.during = number, step, during

    def on_step_begin(self, args, state, control, **kwargs):
        if self.during == "step" and state.global_step == self.step:
            signal.raise_signal(self.number)

    def on_evaluate(self, args, state, control, **kwargs):
        self.step = -1

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.during == "evaluation" and state.global_step == self.step:
            signal.raise_signal(self.number)


@pytest.mark.parametrize(
    ("number", "step", "during", "saved"),
    [(signal.SIGINT, 5, "step", 6), (signal.SIGTERM, 6, "evaluation", 6), (signal.SIGTERM, 12, "final", 12)],
)
def test_stopped_anywhere_then_resumed_is_bit_exact(flags, undisturbed, text, tmp_path, number, step, during, saved):
    run = prepare(*parse(flags(text, tmp_path / "run")), say=lambda _: None)
    if during == "final":
        evaluate = run.trainer.evaluate
        run.trainer.evaluate = lambda *args, **kwargs: (  # the last one, after training
            signal.raise_signal(number) if kwargs.get("metric_key_prefix") == "final" else None,
            evaluate(*args, **kwargs),
        )[1]
    else:
        run.trainer.add_callback(SignalAt(number, step, during))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        train(run)
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(signal.SIGTERM) is before
    assert run_folder.latest_checkpoint(run.folder) == run.folder / f"checkpoint-{saved}"
    assert not (run.folder / "metrics.json").exists()

    assert main(flags(text, run.folder, "--resume")) == 0
    assert_same_weights(undisturbed, run.folder)
    assert metrics_of(run.folder)["loss"] == metrics_of(undisturbed)["loss"]


def test_resume_where_nothing_is_starts(flags, undisturbed, text, tmp_path):
    assert main(flags(text, tmp_path / "new" / "run", "--resume")) == 0
    assert_same_weights(undisturbed, tmp_path / "new" / "run")


def test_resume_of_a_finished_run_trains_no_step_more(flags, undisturbed, text, tmp_path, capsys):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    assert main(flags(text, run, "--resume")) == 0
    assert "all 12 steps have been done" in capsys.readouterr().out
    assert_same_weights(undisturbed, run)
    assert metrics_of(run)["steps"] == 12 and metrics_of(run)["tokens_per_second"] is None


def test_resume_with_the_same_data_elsewhere(flags, undisturbed, text, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    shutil.copytree(text, tmp_path / "text")
    assert main(flags(tmp_path / "text", run, "--resume")) == 0


def test_resume_prolongs_a_run(flags, undisturbed, text, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    assert main(flags(text, run, "--resume", "--max_steps", 14)) == 0
    assert metrics_of(run)["steps"] == 14


# Refused, with nothing touched


def refused(arguments: list[str], capsys) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def test_folder_with_a_run_or_foreign_files(flags, undisturbed, text, tmp_path, capsys):
    before = listing(undisturbed)
    assert "already holds a run: add --resume" in refused(flags(text, undisturbed), capsys)
    assert listing(undisturbed) == before
    (tmp_path / "thesis.tex").write_text("x")
    for more in ([], ["--resume"]):
        assert "holds files that do not belong to a run (thesis.tex)" in refused(flags(text, tmp_path, *more), capsys)
    assert list(listing(tmp_path)) == ["thesis.tex"]
    assert "is a file" in refused(flags(text, tmp_path / "thesis.tex"), capsys)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("--seq_len", "16"), "seq_len was 32 and is now 16"),
        (("--size", "small"), "size was 'tiny' and is now 'small'"),
        (("--learning_rate", "1e-3"), "learning_rate was 0.003 and is now 0.001"),
        (("--gradient_accumulation_steps", "2"), "sequences_per_step was 4 and is now 8"),
        (("--config_overrides", "num_hidden_layers=2"), "config_overrides was"),
    ],
)
def test_resume_with_other_settings(flags, undisturbed, text, capsys, change, named):
    before = listing(undisturbed)
    assert named in refused(flags(text, undisturbed, "--resume", *change), capsys)
    assert listing(undisturbed) == before


def test_resume_with_other_data(flags, undisturbed, text, tmp_path, capsys):
    changed = tmp_path / "text"
    changed.mkdir()
    for file in text.iterdir():
        (changed / file.name).write_text(file.read_text().upper())
    assert "data was 'sha256 " in refused(flags(changed, undisturbed, "--resume"), capsys)


def test_resume_from_what_cannot_be_resumed(flags, undisturbed, text, tmp_path, capsys):
    elsewhere = flags(text, tmp_path / "run", "--resume_from_checkpoint", undisturbed / "checkpoint-8")
    assert "does not belong to the run in" in refused(elsewhere, capsys)
    nothing = flags(text, undisturbed, "--resume_from_checkpoint", undisturbed / "checkpoint-3")
    assert "is not a complete checkpoint" in refused(nothing, capsys)
    run = tmp_path / "only"
    assert main(flags(text, run, "--save_only_model", "--max_steps", 4)) == 0
    assert "was saved with --save_only_model" in refused(
        flags(text, run, "--resume", "--save_only_model", "--max_steps", 6), capsys
    )


def test_resume_from_a_chosen_checkpoint(flags, undisturbed, text, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    assert main(flags(text, run, "--resume_from_checkpoint", run / "checkpoint-8")) == 0
    assert_same_weights(undisturbed, run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--model", "mesa"), "unknown model 'mesa'; available: mesanet"),
        (("--size", "huge"), "unknown size 'huge'; available: tiny"),
        (("--data", "nowhere.txt"), "nowhere.txt: no such file or folder"),
        (("--config_overrides", "hiden_size=64"), "no setting 'hiden_size'; did you mean hidden_size?"),
        (("--config_overrides", "hidden_size=0"), "hidden_size"),
        (("--fsdp", "full_shard", "--use_cpu"), "fsdp: transformers' and accelerate's FSDP needs GPUs; --shard"),
        (("--shard",), "shard: needs several processes: torchrun"),
        (("--shard", "--auto_find_batch_size"), "shard, auto_find_batch_size: allowed is one of the two"),
        (("--fp16",), "fp16: needs a GPU"),
        (("--learning_rate", "nan"), "learning_rate: allowed is > 0, got nan"),
        (("--seq_len", "1"), "seq_len: allowed is at least 2, got 1"),
        (("--do_predict",), "do_train, do_predict: allowed is training alone"),
        (("--resume_from_checkpoint", "runs/nothing"), "does not belong to the run in"),
        (("--lr_scheduler_type", "warmup_stable_decay"), "with lr_scheduler_kwargs=None: get_wsd_schedule() missing"),
        (("--lr_scheduler_type", "cosine_warmup_with_min_lr"), "One of min_lr or min_lr_rate should be set"),
        (
            ("--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"cycles": 1}'),
            "unexpected keyword argument 'cycles'",
        ),
        (("--optim", "sgd", "--optim_args", "momentum"), "optim: sgd with optim_args='momentum' cannot be used here"),
        (("--optim", "schedule_free_adamw"), "optim: schedule_free_adamw cannot be used here: You need to install"),
        (
            ("--metric_for_best_model", "f1"),
            "metric_for_best_model: allowed are loss, accuracy, bits_per_byte; got 'f1'",
        ),
        (("--dataloader_num_workers", "-1"), "dataloader_num_workers: allowed is 0 or more"),
        (("--neftune_noise_alpha", "-1"), "neftune_noise_alpha: allowed is 0 or more"),
        (("--label_smoothing_factor", "2"), "label_smoothing_factor: allowed is in [0, 1)"),
        (("--use_liger_kernel",), "use_liger_kernel: needs another package: pip install liger-kernel"),
    ],
)
def test_wrong_settings_before_any_work(flags, text, tmp_path, capsys, monkeypatch, change, message):
    monkeypatch.setattr("transformers.trainer_optimizer.is_schedulefree_available", lambda: False)
    monkeypatch.setattr("fla_mesa.train.settings.is_liger_kernel_available", lambda: False)
    run = tmp_path / "run"
    assert message in refused(flags(text, run, *change), capsys)
    assert not run.exists()


def test_an_optimizer_that_looks_at_the_model_is_tried_on_it(flags, text, tmp_path, capsys, monkeypatch):
    seen = []

    def handler(arguments, model=None):
        seen.append(type(model).__name__)
        raise ValueError("None of the target modules were found")

    monkeypatch.setattr("transformers.Trainer.get_optimizer_cls_and_kwargs", staticmethod(handler))
    flags = flags(text, tmp_path / "run", "--optim", "galore_adamw", "--optim_target_modules", "nothing")
    assert "optim: galore_adamw cannot be used here: None of the target modules" in refused(flags, capsys)
    assert seen == ["MesaNetForCausalLM"] and not listing(tmp_path / "run")


def test_a_run_that_reached_nothing_goes_on_with_corrected_settings(flags, text, tmp_path, monkeypatch):
    def killed(self, **kwargs):
        raise Interrupted(signal.SIGTERM)

    with monkeypatch.context() as patches:
        patches.setattr("fla_mesa.train.trainer.RecipeTrainer.train", killed)
        assert main(flags(text, tmp_path / "run")) == 143
    assert (tmp_path / "run" / "run.json").exists()
    assert main(flags(text, tmp_path / "run", "--resume", "--learning_rate", "1e-3", "--max_steps", 2)) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["learning_rate"] == 1e-3


def test_diverged_run_says_so_and_keeps_what_was_good(flags, text, tmp_path, capsys):
    run = prepare(*parse(flags(text, tmp_path / "run")), say=lambda _: None)

    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 5:
                model.lm_head.weight.data.fill_(float("nan"))

    run.trainer.add_callback(Poison())
    with pytest.raises(Diverged, match="no longer a finite number at step 6"):
        train(run)
    assert run_folder.latest_checkpoint(run.folder) == run.folder / "checkpoint-4"
    status = read_status(run.folder)
    assert status is not None and (status.state, status.step, status.steps, status.loss) == ("diverged", 6, 12, None)
    assert "try a lower --learning_rate" in status.reason


def test_a_full_disk_has_an_exit_code(flags, text, tmp_path, capsys, monkeypatch):
    write, room = run_folder.write_json, [5]

    def full(path, content):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    for module in ("run_folder", "recipe", "status"):
        monkeypatch.setattr(f"fla_mesa.train.{module}.write_json", full)
    assert main(flags(text, tmp_path / "run")) == DISK_FULL
    assert "free some space and continue with --resume" in capsys.readouterr().err
    room[0] = 1000
    assert main(flags(text, tmp_path / "run", "--resume")) == 0


def test_status_says_how_far_a_run_is_and_how_it_ended(undisturbed, tmp_path):
    status = read_status(undisturbed)
    assert status is not None and (status.state, status.step, status.steps, status.reason) == ("done", 12, 12, "")
    assert status.loss == [logged["loss"] for logged in logs_of(undisturbed) if "loss" in logged][-1]
    assert read_status(tmp_path) is None
    for content in ("{", "{}", '{"state": "dreaming"}', '{"state": "done", "more": 1}'):
        (tmp_path / run_folder.STATUS_FILE).write_text(content)
        assert read_status(tmp_path) is None


# More than one process, more than one batch


def test_two_processes_equal_one_with_twice_the_batch(flags, text, tmp_path):
    """On the CPU, by torchrun with gloo; figures to the rounding of float32 sums in another order."""
    one, two = tmp_path / "one", tmp_path / "two"
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d")
    few = ("--max_steps", 4, "--save_steps", 4, "--eval_steps", 4)
    process = start(
        flags(text, two, *few, "--per_device_train_batch_size", 2),
        launcher=(*launcher, "--rdzv_endpoint", "localhost:0"),
    )
    assert main(flags(text, one, *few)) == 0
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.count("validation loss") == 1  # one process speaks
    first, second = metrics_of(one), metrics_of(two)
    assert second["processes"] == 2 and second["sequences_per_step"] == first["sequences_per_step"]
    for curve in ("train", "validation"):
        for (_, loss), (_, other) in zip(first["history"][curve], second["history"][curve], strict=True):
            assert loss == pytest.approx(other, rel=2e-6)
    assert first["loss"] == pytest.approx(second["loss"], rel=2e-6)


@pytest.mark.parametrize(
    "more",
    [
        ("--bf16", "--bf16_full_eval", "--gradient_checkpointing", "true"),
        ("--load_best_model_at_end", "--save_steps", 6, "--dataloader_drop_last", "--batch_eval_metrics"),
        ("--max_steps", -1, "--num_train_epochs", 1, "--save_strategy", "epoch", "--eval_strategy", "epoch"),
    ],
)
def test_flags_of_transformers_work_together(flags, text, tmp_path, more, capsys):
    assert main(flags(text, tmp_path / "run", *more)) == 0
    shown = capsys.readouterr()
    assert metrics_of(tmp_path / "run")["loss"] < math.log(257) - 0.2  # a uniform guess has ln 257
    assert "missing keys" not in shown.err
    assert {value.dtype for value in weights(tmp_path / "run").values()} == {torch.float32}


def test_accumulated_small_batches_equal_one_large(flags, monkeypatch, text, tmp_path):
    """Rows of unequal numbers of labels: a mean of means would weigh them wrongly."""
    monkeypatch.setattr(sources, "_REGISTERED", {})

    class Uneven(TokenBlocks):
        def __getitem__(self, index):
            row = super().__getitem__(index)
            row["labels"][: 1 + (index * 7) % 30] = -100
            return row

    def load(request):
        ids = torch.randint(0, 50, (64 * 32,), generator=torch.Generator().manual_seed(0)).numpy()
        return Splits(Uneven(ids, 32), Uneven(ids, 32), vocab_size=50, seq_len=32, sha256="0")

    register_source("uneven")(load)
    updates = {}
    for batch, accumulation in ((8, 1), (2, 4)):
        run = tmp_path / f"{batch}"
        # Plain gradient descent, so that the change of the weights is the gradient.
        plain = ("--optim", "sgd", "--learning_rate", 1, "--lr_scheduler_type", "constant", "--warmup_steps", 0)
        plain += (
            "--weight_decay",
            0,
            "--max_grad_norm",
            0,
            "--max_steps",
            1,
            "--eval_strategy",
            "no",
            "--save_strategy",
            "no",
        )
        sizes = ("--per_device_train_batch_size", batch, "--gradient_accumulation_steps", accumulation)
        ready = prepare(*parse(flags("uneven", run, *plain, *sizes)), say=lambda _: None)
        initial = {name: value.detach().clone() for name, value in ready.trainer.model.named_parameters()}
        train(ready)
        updates[batch] = {name: initial[name] - value for name, value in ready.trainer.model.named_parameters()}
    assert updates[8].keys() == updates[2].keys()
    for name, gradient in updates[8].items():
        difference = (gradient - updates[2][name]).norm() / gradient.norm()
        assert difference < 1e-5, (name, difference)


def test_label_smoothing_shifts_the_labels(flags, text, tmp_path):
    """transformers shifts them only for the models that it ships."""
    run = prepare(*parse(flags(text, tmp_path / "run", "--label_smoothing_factor", 0.1)), say=lambda _: None)
    batch = {name: torch.stack([run.splits.train[row][name] for row in range(3)]) for name in ("input_ids", "labels")}
    batch["labels"][0, 5:] = -100
    logits = run.trainer.model(input_ids=batch["input_ids"]).logits[:, :-1]
    by_hand = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), batch["labels"][:, 1:], ignore_index=-100, label_smoothing=0.1
    )
    torch.testing.assert_close(run.trainer.compute_loss(run.trainer.model, dict(batch)), by_hand)
