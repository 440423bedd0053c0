"""The contract of flame: meta device, fully_shard, to_empty, post_init, packed steps; and the files that its users need."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fla_mesa import cli
from fla_mesa.models import MesaNetConfig, MesaNetForCausalLM, config_files, zoo
from fla_mesa.testing.ranks import run_once
from tests.train import flame

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def wrong(tmp_path_factory) -> dict[str, str]:
    """What is wrong with each case, of both ranks."""
    answers = run_once(tmp_path_factory, flame.check_all, 2)
    return {name: text for answer in answers for name, text in answer.items()}


@pytest.mark.parametrize("case", flame.CASES)
def test_a_model_that_flame_builds_starts_and_trains_as_one_that_is_not_sharded(wrong, case):
    assert case not in wrong, wrong[case]


def test_shipped_configurations_are_those_of_the_zoo():
    """After a change of the zoo: `fla-mesa configs`."""
    made = config_files.files()
    assert {path.name for path in CONFIGS.glob("*.json")} == set(made)
    for name, text in made.items():
        assert (CONFIGS / name).read_text() == text, name


@pytest.mark.parametrize("name", config_files.files())
def test_a_shipped_configuration_loads_as_flame_loads_it(name):
    """By the file's name, and it is what the zoo builds: a setting that the file leaves out has today's default."""
    loaded = AutoConfig.from_pretrained(str(CONFIGS / name))
    assert isinstance(loaded, MesaNetConfig)
    model, size = name.removesuffix(".json").rsplit("_", 1)
    built = zoo.build_config(model, size, **config_files.TOKENS, max_position_embeddings=config_files.CONTEXT)
    ignored = {"_name_or_path", "transformers_version"}
    assert {k: v for k, v in loaded.to_dict().items() if k not in ignored} == {
        k: v for k, v in built.to_dict().items() if k not in ignored
    }
    assert zoo.count_parameters(loaded) > 1e8


def test_the_command_writes_any_architecture(tmp_path, capsys):
    argv = [
        "configs",
        "--models",
        "matched-gla",
        "--sizes",
        "2x64",
        "--output_dir",
        str(tmp_path),
        "--vocab_size",
        "99",
    ]
    assert cli.main(argv) == 0
    stored = json.loads((tmp_path / "matched-gla_2x64.json").read_text())
    assert stored["vocab_size"] == 99 and stored["model_type"] == "mesanet_matched"
    assert cli.main(["configs", "--models", "mesanett", "--output_dir", str(tmp_path / "no")]) == 2
    assert "unknown model 'mesanett'; available: mesanet" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_custom_models_registers_the_families(tmp_path):
    """In a folder like flame's, which has a `custom_models` without an `__init__.py`."""
    (tmp_path / "custom_models" / "sba").mkdir(parents=True)
    code = (
        "import custom_models; from transformers import AutoConfig; print(AutoConfig.from_pretrained("
        f"{str(CONFIGS / 'mesanet_340M.json')!r}).model_type)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{CONFIGS}:{CONFIGS.parent}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "mesanet"


def test_flame_widens_a_vocabulary():
    config = AutoConfig.from_pretrained(str(CONFIGS / "mesanet_140M.json"))
    config.vocab_size = max(50_000, config.vocab_size)
    with torch.device("meta"):
        assert AutoModelForCausalLM.from_config(config).lm_head.out_features == 50_000


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"tp_plan": "auto"}, "tp_plan"),
        ({"tp_size": 2}, "tp_size"),
        ({"distributed_config": {"tp_plan": "auto"}}, "tp_plan"),
    ],
)
def test_tensor_parallelism_is_refused_by_name(asked, name):
    with pytest.raises(ValueError, match=f"{name} must be None: this family has no tensor parallelism"):
        MesaNetForCausalLM.from_pretrained("nowhere", **asked)


def test_export_is_refused_by_name():
    model = MesaNetForCausalLM(MesaNetConfig(**flame.TINY)).eval()
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    with pytest.raises(NotImplementedError, match=r"torch\.export does not support this family"):
        torch.export.export(model, (tokens,))
