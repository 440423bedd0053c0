"""In-context regression through the commands: trained on vectors, held against the closed-form optimum."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fla_mesa.data.regression import Regression, features
from fla_mesa.eval.compare import command as compare
from fla_mesa.eval.compare.pictures import judged_by
from fla_mesa.eval.measure import squared_error
from fla_mesa.models import zoo
from fla_mesa.models.checkpoint import check_checkpoint
from fla_mesa.models.regression import RegressionConfig, RegressionModel
from fla_mesa.train.command import main as train
from tests.eval.conftest import OVERRIDES

SPEC = "regression:dimension=3,length=16,noise=0.3,drift=0.02,train=64,validation=8,test=12"
SHORT = ["--config_overrides", OVERRIDES, "--max_steps", "6", "--per_device_train_batch_size", "4"]
SHORT += ["--learning_rate", "3e-3", "--save_steps", "3", "--eval_steps", "3", "--logging_steps", "1"]


def tiny(name="matched-mesanet") -> RegressionModel:
    torch.manual_seed(0)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    inner = zoo.build_config(name, "2x32", vocab_size=1, max_position_embeddings=16, **ids)
    return AutoModelForCausalLM.from_config(RegressionConfig(4, inner))


class Predicting:
    """A model that predicts what a function of x and y says."""

    device = torch.device("cpu")

    def __init__(self, function):
        self.function = function

    def __call__(self, features):
        x = features[..., :-1].double().numpy()
        y = np.concatenate([features[:, 1:, -1].double().numpy(), np.zeros((len(features), 1))], axis=1)
        return SimpleNamespace(logits=torch.from_numpy(self.function(x, y)))


def test_the_optimum_has_no_excess_and_another_its_distance():
    """From the features alone, so that these hold all that the optimum needs."""
    task = Regression.parse(SPEC)
    best = squared_error.measure(Predicting(task.optimum), task, batch_size=5)
    assert best.excess.max() < 1e-12 and np.allclose(best.own, squared_error.optimal(task))
    test = task.split("test").arrays
    nothing = squared_error.measure(Predicting(lambda x, y: np.zeros_like(y)), task, batch_size=5)
    assert np.allclose(nothing.excess, (test["optimum"] ** 2).mean(0))
    assert nothing.optimal == pytest.approx(((test["y"] - test["optimum"]) ** 2).mean(0))


def test_no_predictor_is_better_than_the_optimum():
    """Ridge regression that takes the drifting weights for constant, or the noise for another, does worse on many sequences."""
    task = Regression(dimension=3, length=40, noise=0.3, drift=0.1, test=2000)
    test = task.split("test").arrays
    errors = {"best": ((test["optimum"] - test["y"]) ** 2).mean()}
    for name, other in (("at rest", Regression(3, 40, 0.3, 0.0)), ("noisier", Regression(3, 40, 1.0, 0.1))):
        errors[name] = ((other.optimum(test["x"], test["y"]) - test["y"]) ** 2).mean()
    assert errors["best"] < 0.97 * min(errors["at rest"], errors["noisier"])


@pytest.mark.parametrize(
    "name", ["matched-mesanet", "gated_deltanet", "transformer", "mamba2", "xlstm", "matched-hawk"]
)
def test_any_model_of_the_zoo_reads_vectors(name, tmp_path):
    model = tiny(name)
    read, y = torch.randn(2, 16, 4), torch.randn(2, 16)
    out = model(features=read, labels=y)
    assert out.logits.shape == (2, 16) and out.loss.item() == pytest.approx((out.logits - y).square().mean().item())
    out.loss.backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []  # as DDP demands
    model.eval()
    with torch.no_grad():
        before, later = model(features=read).logits, read.clone()
        later[:, 9:] += 1.0
        after = model(features=later).logits
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert (before[:, 9:] - after[:, 9:]).abs().min() > 0
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path).eval()(features=read).logits, before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regression") / "run"
    assert train(["--data", SPEC, "--model", "matched-mesanet", "--output_dir", str(folder), *SHORT]) == 0
    return folder


def test_training_leaves_figures_of_vectors(trained, capsys):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert (metrics["accuracy"], metrics["perplexity"], metrics["bits_per_byte"]) == (None, None, None)
    assert metrics["tokens_per_second"] > 0 and metrics["solver"]["cg_iterations"] > 0
    model = AutoModelForCausalLM.from_pretrained(trained).eval()
    rows = [Regression.parse(SPEC).split("validation")[i] for i in range(8)]
    read, y = (torch.stack([row[name] for row in rows]) for name in ("features", "labels"))
    with torch.no_grad():
        by_hand = (model(features=read).logits - y).square().mean().item()
    assert metrics["loss"] == pytest.approx(by_hand, rel=1e-5)


def test_training_goes_on_bit_exactly(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(run / "checkpoint-6")
    (run / "metrics.json").unlink()
    assert train(["--data", SPEC, "--model", "matched-mesanet", "--output_dir", str(run), *SHORT, "--resume"]) == 0
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (trained, run))
    assert first["history"] == second["history"] and first["loss"] == second["loss"]


def test_what_only_reads_tokens_refuses_its_checkpoint(trained):
    with pytest.raises(ValueError, match="reads vectors in place of tokens: fla-mesa compare measures it"):
        check_checkpoint(str(trained))


def test_compare_reports_the_error_over_the_optimum(tmp_path, here):
    short = ["--models", "mesanet,gated_deltanet", "--lr", "3e-3", "--parametrization", "matched", "--suite", SPEC]
    short += [
        word for pair in zip(SHORT[::2], SHORT[1::2], strict=True) if pair[0] != "--learning_rate" for word in pair
    ]
    assert compare.main([*short, "--baseline", "mesanet", "--output_dir", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    task, (mesanet, _) = Regression.parse(SPEC), report["models"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "cells/matched-mesanet/lr0.003-seed1").eval()
    test = task.split("test").arrays
    with torch.no_grad():
        read = torch.from_numpy(features(test["x"], test["y"])).float()
        excess = (model(features=read).logits.numpy() - test["optimum"]) ** 2
    least = (test["y"] - test["optimum"]) ** 2
    assert mesanet["error_over_optimum"]["mean"] == pytest.approx(excess.mean() / least.mean(), rel=1e-4)
    assert mesanet["squared_error_by_position"] == pytest.approx((excess + least).mean(0), rel=1e-4)
    assert mesanet["optimal_error_by_position"] == pytest.approx(least.mean(0))
    assert mesanet["loss_without_steps"] is not None and mesanet["decode_tokens_per_second"] is None
    text = (tmp_path / "report.md").read_text()
    assert (
        "Losses are squared errors." in text
        and "error over the optimum" in text
        and "error_by_position.png" in text
        and "accuracy" not in text
    )
    assert (tmp_path / "error_by_position.png").read_bytes().startswith(b"\x89PNG")
    assert judged_by([])[0] == "validation accuracy"


def test_the_suite_is_at_rest_and_drifting(capsys):
    from fla_mesa.eval.compare.plan import parse

    plans = parse(["--preset", "regression"])
    tasks = [Regression.parse(plan.settings.data) for plan in plans]
    assert [task.drift for task in tasks] == [0.0, 0.02] and all(task.noise > 0 for task in tasks)
    with pytest.raises(ValueError, match="regression: unknown setting 'widht'"):
        parse(["--suite", "regression:widht=3"])
