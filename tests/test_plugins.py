"""Each thing that can be added from outside the package is added by one file, through the command line."""

import json
import sys
import traceback
from importlib.metadata import EntryPoint

import pytest

from fla_mesa import plugins
from fla_mesa.cli import main
from fla_mesa.testing.ranks import run_on_ranks

# One file, so that one process need not be started for each; nothing in a part of it needs another part.
PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from fla.models import LinearAttentionConfig

from fla_mesa.data import DataRequest, load_data, register_source, synthetic
from fla_mesa.layers.matched import rule
from fla_mesa.layers.matched.delta import DeltaRule
from fla_mesa.layers.recurrent import QKVSettings
from fla_mesa.models import zoo
from fla_mesa.ops.backends import register_backend
from fla_mesa.ops.pytorch import *  # a back end is a module with these functions

register_backend("mine", __name__)
steps_taken = []


def chunk_forward(*args, **options):
    from fla_mesa.ops import pytorch

    steps_taken.append(options["max_steps"])
    return pytorch.chunk_forward(*args, **options)


@zoo.register("linear_attn", note="a note of mine")
def linear_attn(shape, tokens):
    return LinearAttentionConfig(num_heads=shape.num_heads, **zoo.common(shape, tokens))


@dataclass(frozen=True, kw_only=True)
class SlowSettings(QKVSettings):
    slowness: float = 1.0


@rule("slow_delta", "the delta rule under another name")
class SlowDelta(DeltaRule):
    Settings = SlowSettings

    def __init__(self, settings, layer_idx=None):
        super().__init__(settings, layer_idx)
        self.slowness = settings.slowness


@register_source("shouting")
def shouting(request: DataRequest):
    return load_data(DataRequest(request.spec.partition(":")[2], seq_len=request.seq_len, say=request.say))


@synthetic.register("count", sizes=(32, 8, 8))
@dataclass(frozen=True)
class Count(synthetic.Task):
    """Every symbol is the last one plus 1."""

    name: ClassVar[str] = "count"
    paper: ClassVar[str] = "none"
    length: int = 16

    symbols: ClassVar[int] = 64
    columns = property(lambda self: self.length)

    def draw(self, rng, n, split):
        ids = (rng.integers(0, 64, (n, 1)) + rng.integers(1, 8, (n, 1)) * np.arange(self.length)) % 64
        return {"input_ids": ids, "labels": ids}
'''
SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32}
SHORT = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--eval_strategy", "no", "--save_steps", "1"]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "my_models.py"
    path.write_text(PLUGIN)
    return path


def train(plugin, folder):
    """In a process of its own: plug-ins cannot be taken out again."""
    text = folder / "text.txt"
    text.write_text("the cat sat on the mat. " * 60)
    runs = {
        "architecture": (SMALL, ["--model", "linear_attn", "--data", text, "--seq_len", "32"]),
        "rule": (
            SMALL | {"head_dim": 16, "rule_settings": {"slowness": 2.0}},
            ["--model", "matched-slow_delta", "--data", f"shouting:{text}", "--seq_len", "32"],
        ),
        "backend": (
            SMALL | {"head_dim": 16, "backend": "mine"},
            ["--model", "mesanet", "--data", "count:length=16,train=32"],
        ),
    }
    codes = {}
    for name, (changes, flags) in runs.items():
        own = [*flags, "--config_overrides", json.dumps(changes), "--output_dir", folder / name, *SHORT]
        codes[name] = main(["train", "--plugin", str(plugin), *map(str, own)])
    return codes, len(sys.modules["fla_mesa_plugin_my_models"].steps_taken)


def go_on(plugin, folder):
    """Neither resuming nor reading a checkpoint asks for the plug-in again."""
    flags = [
        "--model",
        "linear_attn",
        "--data",
        folder / "text.txt",
        "--seq_len",
        "32",
        "--config_overrides",
        json.dumps(SMALL),
    ]
    code = main(["train", *map(str, [*flags, "--output_dir", folder / "architecture", *SHORT, "--resume"])])
    return code, plugins.loaded() == (str(plugin),)


def read(folder):
    from fla_mesa.models.checkpoint import check_checkpoint, load_model

    check_checkpoint(str(folder / "rule"))
    layer = load_model(str(folder / "rule")).model.layers[0].attn
    return type(layer).__name__, layer.slowness


def test_everything_can_be_added_by_a_file(plugin, tmp_path):
    ((codes, forward_passes),) = run_on_ranks(train, 1, tmp_path, plugin, tmp_path, connect=False)
    assert codes == {"architecture": 0, "rule": 0, "backend": 0} and forward_passes > 0
    for name in codes:
        assert json.loads((tmp_path / name / "run.json").read_text())["plugins"] == [str(plugin)]
    command = json.loads((tmp_path / "rule" / "metrics.json").read_text())["command"]
    assert command[:4] == ["fla-mesa", "train", "--plugin", str(plugin)]

    assert run_on_ranks(go_on, 1, tmp_path, plugin, tmp_path, connect=False) == [(0, True)]
    assert run_on_ranks(read, 1, tmp_path, tmp_path, connect=False) == [("SlowDelta", 2.0)]
    plugin.rename(plugin.with_name("moved.py"))
    try:
        with pytest.raises(
            AssertionError, match=r"was trained with .*there is no file .*; pass its new location with --plugin"
        ):
            run_on_ranks(read, 1, tmp_path, tmp_path, connect=False)
    finally:
        plugin.with_name("moved.py").rename(plugin)


# What is wrong with a plug-in


@pytest.fixture(autouse=True)
def _none_loaded(monkeypatch):
    monkeypatch.setattr(plugins, "_loaded", {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--plugin", "no_such_module.at_all"], "plugin: there is no module 'no_such_module.at_all'"),
        (["--plugin=nowhere/mine.py"], "nowhere/mine.py"),
        (["--plugin"], "plugin: expected a module name or .py file; got nothing"),
        (["--plugin", "--models"], "plugin: expected a module"),
    ],
)
def test_a_plugin_that_is_not_there(given, message, capsys):
    assert main(["configs", *given]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["import no_such_package\n", "1 / 0\n", "open('no such file')\n"])
def test_a_plugin_that_fails_has_its_own_traceback(content, tmp_path):
    file = tmp_path / "broken_plugin.py"
    file.write_text(content)
    with pytest.raises(ImportError, match=r"broken_plugin\.py cannot be imported") as raised:
        main(["configs", "--plugin", str(file)])
    shown = "".join(traceback.format_exception(raised.value))
    assert f'File "{file}", line 1, in <module>' in shown


def test_installed_packages_need_no_flag(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "installed_plugin.py").write_text("loaded = True\n")
    (tmp_path / "installed_and_broken.py").write_text("1 / 0\n")
    entries = [EntryPoint("mine", "installed_plugin", plugins.GROUP)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: entries)
    monkeypatch.setattr(plugins, "_entry_points_loaded", False)
    plugins.load([])
    assert sys.modules["installed_plugin"].loaded and plugins.loaded() == ()
    entries.append(EntryPoint("other", "installed_and_broken", plugins.GROUP))
    monkeypatch.setattr(plugins, "_entry_points_loaded", False)
    with pytest.raises(ImportError, match="the plug-in other = 'installed_and_broken' of an installed package fails"):
        plugins.load([])


def test_names_that_are_taken():
    from fla_mesa.data import register_source, synthetic
    from fla_mesa.models import zoo
    from fla_mesa.ops.backends import register_backend

    for add in (
        zoo.register("gla"),
        zoo.register("gla", parametrization="matched"),
        register_source("mqar"),
        synthetic.register("mqar", sizes=(1, 1, 1)),
    ):
        with pytest.raises(ValueError, match=r"name: '.*' is already a"):
            add(lambda *args: None)
    with pytest.raises(ValueError, match=r"name: 'exact' is already a back end, fla_mesa\.ops\.exact; got mine"):
        register_backend("exact", "mine")
