"""Tiny checkpoints with random weights and a byte tokenizer, made once a session, and one directory of local tasks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import traceback

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fla_mesa.data import synthetic
from fla_mesa.data.tokenizer import VOCAB_SIZE, byte_tokenizer
from fla_mesa.eval.compare import columns
from fla_mesa.eval.measure import speed
from fla_mesa.models import MesaNetConfig, MesaNetForCausalLM
from fla_mesa.train.attempt import Training
from fla_mesa.train.worker import Worker

OVERRIDES = "hidden_size=32,num_hidden_layers=2,num_heads=2,head_dim=16,intermediate_size=32"
# Small flags that every model of the tests knows.
SMALL = ["--parametrization", "matched", "--config_overrides", OVERRIDES, "--seq_len", "32", "--max_steps", "4"]
SMALL += ["--eval_steps", "2", "--save_steps", "2", "--per_device_train_batch_size", "2", "--position_tokens", "512"]


def llama(vocab_size: int = VOCAB_SIZE) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=2048,
            initializer_range=0.3,  # sharp enough that argmax and likelihoods differ between inputs
            bos_token_id=None,
            eos_token_id=min(256, vocab_size - 1),
        )
    ).eval()


def mesanet(vocab_size: int = VOCAB_SIZE) -> MesaNetForCausalLM:
    torch.manual_seed(0)
    model = MesaNetForCausalLM(
        MesaNetConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_heads=2,
            head_dim=16,
            bos_token_id=None,
            eos_token_id=min(256, vocab_size - 1),
            initializer_range=0.3,
        )
    )
    return model.eval()


@pytest.fixture(scope="session")
def llama_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "llama"
    llama().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def mesanet_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "mesanet"
    mesanet().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def suite_checkpoint(tmp_path_factory):
    """A model of numbers, whose tokenizer records a small MQAR."""
    suite = synthetic.get("mqar:vocab_size=64,length=32,num_pairs=2,test=6")
    path = tmp_path_factory.mktemp("checkpoints") / "mqar"
    mesanet(suite.vocab_size).save_pretrained(path)
    synthetic.number_tokenizer(suite).save_pretrained(path)
    return path


@pytest.fixture(params=["llama", "mesanet"])
def text_checkpoint(request):
    """A checkpoint of bytes: of transformers' own family, then of this package's."""
    return request.getfixturevalue(f"{request.param}_checkpoint")


QUESTIONS = [
    {"question": "What do owls eat?", "choices": ["mice", "stone", "a long answer that is not true"], "answer": 0},
    {"question": "Which is a colour?", "choices": ["seven", "blue", "run"], "answer": 1},
    {"question": "How many legs has a horse?", "choices": ["three", "five of them", "four"], "answer": 2},
    {"question": "Is it raining?", "choices": ["yes", "no", "perhaps"], "answer": 1},
    {"question": "Short?", "choices": ["a", "b", "c"], "answer": 0},
]


@pytest.fixture(autouse=True)
def no_inventory(monkeypatch):
    """lm-eval lists the machine's packages for every evaluation, a second each time; no test here looks at the list."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)


@pytest.fixture(scope="session")
def questions():
    """The documents of `local_choice` and `local_generation`."""
    return QUESTIONS


@pytest.fixture(scope="session")
def local_tasks(tmp_path_factory):
    """YAML tasks on local files: multiple choice, generation, and one whose data is missing."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    source = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files: {{test: {folder / 'questions.jsonl'}}}\ntest_split: test\n"
    )
    (folder / "choice.yaml").write_text(
        "task: local_choice\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{answer}}'\nnum_fewshot: 0\nmetric_list: [{metric: acc}]\n" + source
    )
    (folder / "generate.yaml").write_text(
        "task: local_generation\noutput_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: 'x'\n"
        "num_fewshot: 0\ngeneration_kwargs: {until: ['never'], max_gen_toks: 12}\n"
        "metric_list: [{metric: exact_match}]\n" + source
    )
    (folder / "default.yaml").write_text(  # as many new tokens as lm-eval gives where a task says nothing: 256
        "task: local_default_generation\noutput_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: 'x'\n"
        "num_fewshot: 0\ngeneration_kwargs: {until: ['never']}\nmetric_list: [{metric: exact_match}]\n" + source
    )
    (folder / "missing.yaml").write_text(
        "task: local_missing\noutput_type: multiple_choice\ndoc_to_text: x\ndoc_to_choice: [a, b]\ndoc_to_target: 0\n"
        f"dataset_path: json\ndataset_kwargs:\n  data_files: {{test: {folder / 'nothing.jsonl'}}}\ntest_split: test\n"
    )
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A file of 12 kB."""
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("".join(f"{i} squared is {i * i}, and its half {i / 2}.\n" for i in range(320)))
    return path


@pytest.fixture
def here(monkeypatch):
    """The worker's jobs run in this process; yields the list of what they were: "train", or what is measured."""
    done = []

    def run(self, job, log, follow=lambda: None):
        done.append(("train", job.values["model"]) if isinstance(job, Training) else ("measure", *job.names))
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            try:
                code = job()
            except Exception:
                traceback.print_exc()
                code = 1
        follow()
        return code, 1.0

    monkeypatch.setattr(Worker, "run", run)
    monkeypatch.setattr(speed, "REPEATS", 1)
    monkeypatch.setattr(columns, "DECODED", 2)
    return done


@pytest.fixture
def measured_alone(monkeypatch):
    """Makes all columns that would be measured, but those that are named, apply to no model."""

    def use(*names: str) -> None:
        for name, column in columns.COLUMNS.items():
            if column.measured and name not in names:
                monkeypatch.setitem(columns.COLUMNS, name, dataclasses.replace(column, function=lambda run: None))

    return use


@pytest.fixture
def small() -> list[str]:
    """Flags of `fla-mesa compare` for very small models."""
    return [*SMALL]
