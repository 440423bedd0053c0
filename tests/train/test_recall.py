"""MesaNet learns to recall (what benchmarks/results shows at the paper's size, at one that takes seconds)."""

import json

from fla_mesa.train.command import main

TASK = "mqar:vocab_size=256,length=16,num_pairs=4,train=20000,validation=256"


def test_two_layers_of_width_64_learn_to_recall(tmp_path):
    flags = ["--model", "mesanet", "--size", "2x64", "--data", TASK, "--learning_rate", "1e-2", "--max_steps", "500"]
    flags += ["--per_device_train_batch_size", "32", "--eval_strategy", "no", "--save_strategy", "no"]
    flags += ["--config_overrides", '{"gamma_init": [0.5, 0.98]}']
    assert main([*flags, "--output_dir", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["accuracy"] >= 0.99
