"""What `fla-mesa inspect` says of a layer is what the op computes in it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from transformers import AutoModelForCausalLM

from fla_mesa.cli import main
from fla_mesa.eval.inspect.measure import inspect_layers, log_spaced, states
from fla_mesa.eval.inspect.report import save
from fla_mesa.layers.mesa_net import Regression
from fla_mesa.layers.solver import mesa_layers
from fla_mesa.ops import chunk_mesa_net
from fla_mesa.report.files import read
from fla_mesa.report.pictures import Picture


@pytest.fixture(scope="module")
def model(request):
    return AutoModelForCausalLM.from_pretrained(request.getfixturevalue("mesanet_checkpoint")).eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 256, (3, 50), generator=torch.Generator().manual_seed(0))


def test_the_regression_of_a_layer_is_the_one_that_it_solves(model, ids):
    layer, seen = mesa_layers(model)[1], {}
    handle = layer.register_forward_hook(
        lambda _, args, kwargs, output: seen.update(
            x=kwargs.get("hidden_states", args[0] if args else None), y=output[0]
        ),
        with_kwargs=True,
    )
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
        handle.remove()
        q, k, v, g, beta, lamb = layer.regression(seen["x"])
        o, _, _ = chunk_mesa_net(q, k, v, g, beta, lamb, cg_tolerance=layer.cg_tolerance)
        torch.testing.assert_close(layer._output(o, seen["x"]), seen["y"], rtol=1e-3, atol=1e-5)


def test_states_condition_and_cosine_are_the_op_s(model, ids):
    layer, inputs = mesa_layers(model)[0], []
    handle = layer.register_forward_pre_hook(lambda _, args, kwargs: inputs.append(args[0] if args else kwargs["hidden_states"]),
                                             with_kwargs=True)  # fmt: skip
    report = inspect_layers(model, ids)[0]
    handle.remove()
    with torch.no_grad():
        problem = Regression(*(x.double() for x in layer.regression(inputs[0])))
    solved, h, g = chunk_mesa_net(*problem, output_final_state=True, backend="exact")
    t, last_h, last_g = list(states(problem, log_spaced(50)))[-1]
    assert t == 49
    torch.testing.assert_close(last_h, h)
    torch.testing.assert_close(last_g, g)
    a = h + torch.diag_embed(problem.lamb)
    torch.testing.assert_close(torch.from_numpy(report.condition[:, -1]), torch.linalg.cond(a))
    plain = (g.mT @ problem.q[:, -1, :, :, None]).squeeze(-1)
    cosine = torch.nn.functional.cosine_similarity(plain, solved[:, -1], dim=-1)
    torch.testing.assert_close(torch.from_numpy(report.cosine[:, -1]), cosine)
    assert report.gamma.shape == report.beta.shape == report.iterations.shape == (3, 50, 2)
    assert report.condition.shape == report.cosine.shape == (3, len(report.spots), 2)


def test_looking_changes_nothing(model, ids):
    layers = mesa_layers(model)
    layers[0].max_cg_step_training = 1
    try:
        first = inspect_layers(model, ids)[0]
    finally:
        layers[0].max_cg_step_training = 30
    assert first.iterations.max() == 1 and first.unsolved.max() > 0.5
    assert inspect_layers(model, ids)[0].unsolved.max() == 0
    for layer in layers:
        assert not layer.record_stats and layer.last_stats is None and not layer._forward_pre_hooks


def test_the_command_leaves_a_table_curves_and_pictures(mesanet_checkpoint, tmp_path, capsys):
    line = [
        "inspect",
        str(mesanet_checkpoint),
        "--length",
        "40",
        "--sequences",
        "2",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert main(line) == 0
    report, pictures = (tmp_path / "out" / "inspect.md").read_text().split("## Pictures")
    written = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert written == ["gates.png", "lambda.png", "positions.png"]
    page = (tmp_path / "out" / "inspect.html").read_text()
    assert all(f"({name})" in pictures and Path(name).stem in page for name in written)
    assert report.strip() in capsys.readouterr().out
    assert [row.split("|")[1].strip() for row in report.splitlines() if row.startswith("| ")][2:] == [
        "0.0",
        "0.1",
        "1.0",
        "1.1",
    ]
    curves = json.loads((tmp_path / "out" / "inspect.json").read_text())["layers"]
    assert len(curves) == 2 and all(len(head) == len(curves[0]["positions"]) for head in curves[0]["condition"])
    for name in written:
        assert imread(tmp_path / "out" / name).std() > 0.05  # something is drawn
    (gates,) = (block for section in read(tmp_path / "out" / "inspect.json") for block in section.blocks
                if isinstance(block, Picture) and block.name == "gates")  # fmt: skip
    assert [panel.y for panel in gates.panels] == ["gamma", "beta", "gamma", "beta"]
    for panel, name in zip(gates.panels[2:], ("gamma", "beta"), strict=True):
        assert list(panel.lines) == ["0.0", "0.1", "1.0", "1.1"]
        assert panel.lines["1.1"].y == pytest.approx(curves[1][name][1])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--length", "1"], "length must be"),
        (["--sequences", "0"], "sequences must be"),
        (["--device", "cuda:77"], "device"),
    ],
)
def test_mistakes_are_named(mesanet_checkpoint, tmp_path, capsys, flags, said):
    assert main(["inspect", str(mesanet_checkpoint), "--output_dir", str(tmp_path / "out"), *flags]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_without_mesa_layers_is_refused(llama_checkpoint, tmp_path, capsys):
    assert main(["inspect", str(llama_checkpoint), "--output_dir", str(tmp_path)]) == 2
    assert "Mesa layers" in capsys.readouterr().err


def test_what_is_not_known_is_left_empty(model, ids, tmp_path):
    """A back end that reports no residual, and a position where nothing has been written yet."""
    (report, *_) = inspect_layers(model, ids)
    cosine = report.cosine.copy()
    cosine[:, 0, 0] = np.nan
    unknown = dataclasses.replace(report, unsolved=np.full(2, np.nan), cosine=cosine)
    save([unknown], {"checkpoint": "x"}, tmp_path)
    rows = [row for row in (tmp_path / "inspect.md").read_text().splitlines() if row.startswith("| 0.")]
    assert len(rows) == 2 and all("–" in [cell.strip() for cell in row.split("|")] for row in rows)
    curves = json.loads((tmp_path / "inspect.json").read_text())["layers"][0]
    assert (
        curves["not_converged"] == [None, None]
        and curves["cosine"][0][0] is None
        and curves["cosine"][1][0] is not None
    )
