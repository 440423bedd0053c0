"""How the stand-ins get in place, what they leave alone, and what is said where there is none."""

import importlib
import inspect
import runpy
import subprocess
import sys
from types import ModuleType

import fla
import pytest
import torch
from fla.ops.gla import chunk_gla
from fla.ops.rwkv7 import chunk_rwkv7

import fla_mesa.cpu
from fla_mesa.cpu import registry


def test_enable_twice():
    before = chunk_gla, fla.modules.FusedCrossEntropyLoss.forward, fla.layers.attn.flash_attn_func
    fla_mesa.cpu.enable()
    assert fla_mesa.cpu.is_enabled()
    from fla.ops.gla import chunk_gla as after

    assert before == (after, fla.modules.FusedCrossEntropyLoss.forward, fla.layers.attn.flash_attn_func)


SNAPSHOT = """
import sys, types
import fla, fla.models, fla.layers, fla.ops
import triton.runtime.driver

def snapshot():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] not in ("fla", "triton"):
            continue
        for key, value in list(vars(module).items()):
            found[f"{name}.{key}"] = value
            if isinstance(value, type):
                found |= {f"{name}.{key}.{inner}": held for inner, held in vars(value).items() if callable(held)}
    return found

def changed(before):
    after = snapshot()
    # Repairs of fla's models on any device stay.
    others = ("save_pretrained", "prepare_inputs_for_generation")
    names = (name for name, value in before.items() if not name.endswith(others) and (callable(value) or "flash_attn" in name))
    return sorted(name for name in names if after.get(name) is not before[name])

before = snapshot()
import torch
import fla_mesa.cpu
from fla_mesa.layers.matched import delta          # of this package, which binds fla's functions as they are then
from fla_mesa.models.fla_families import Attention

replaced = changed(before)
assert {"fla.ops.gla.chunk_gla", "fla.layers.mamba2.Mamba2.forward", "fla.layers.attn.flash_attn_func"} <= set(replaced), replaced
assert "fla.models.modeling_utils.FLAForCausalLM.forward" in replaced and "fla.layers.attn.Attention.forward" in replaced
fla_mesa.cpu.disable()
assert changed(before) == [], changed(before)
assert not fla_mesa.cpu.is_enabled() and fla_mesa.cpu.covered() == ()
assert delta.chunk_delta_rule is before["fla.ops.delta_rule.chunk_delta_rule"]
x = [torch.randn(1, 4, 1, 16) for _ in range(4)]
try:
    fla.ops.gla.chunk_gla(*x)
    raise SystemExit("fla's own kernel ran")
except (RuntimeError, ValueError, AttributeError) as error:
    assert not isinstance(error, NotImplementedError), error  # Triton's own, not one that names stand-ins
fla_mesa.cpu.disable()                              # nothing to undo
fla_mesa.cpu.enable()
assert changed(before) == replaced
assert delta.chunk_delta_rule is fla.ops.delta_rule.chunk_delta_rule is not before["fla.ops.delta_rule.chunk_delta_rule"]
assert fla.ops.gla.chunk_gla(*x)[0].shape == (1, 4, 1, 16)
"""


@pytest.mark.skipif(fla_mesa.cpu.accelerator_available(), reason="fla's own kernels run here")
def test_disable_gives_back_every_function_and_enable_takes_it_again():
    """In a process that has not imported the package yet, so that it knows what was there before."""
    done = subprocess.run([sys.executable, "-c", SNAPSHOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_module_prints_what_is_replaced_by_what(capsys):
    runpy.run_module("fla_mesa.cpu", run_name="__main__", alter_sys=False)
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("fla."))
    assert lines["fla.ops.gla.chunk.chunk_gla"] == "fla_mesa.cpu.linear_attention.chunk_gla"
    assert lines["fla.layers.mamba2.Mamba2.forward"].startswith("fla_mesa.cpu.mamba2.")
    assert set(lines) == {name for name in fla_mesa.cpu.covered() if " " not in name}


def test_covered():
    covered = fla_mesa.cpu.covered()
    assert list(covered) == sorted(set(covered))
    assert "fla.ops.gla.chunk.chunk_gla" in covered
    assert "fla.modules.fused_cross_entropy.ops.FusedCrossEntropyLoss.forward" in covered
    assert "fla.layers.mamba2.Mamba2.forward" in covered
    assert "fla.ops.rwkv7.chunk.chunk_rwkv7" not in covered


def test_one_function_everywhere():
    """Every module that holds a function by name holds the new one."""
    holders = [importlib.import_module(name) for name in ("fla.ops.gla", "fla.ops.gla.chunk", "fla.layers.gla")]
    assert len({id(module.chunk_gla) for module in holders}) == 1
    assert holders[0].chunk_gla is not inspect.unwrap(holders[0].chunk_gla)


def test_missing_entry_point():
    x = [torch.randn(1, 16, 2, 16) for _ in range(6)]
    with pytest.raises(NotImplementedError) as error:
        chunk_rwkv7(*x)
    message = str(error.value)
    assert "fla.ops.rwkv7" in message
    assert "no PyTorch version" in message
    for covered in ("gated_deltanet", "transformer", "chunk_gla", "chunk_kda", "causal_conv1d"):
        assert covered in message
    assert "active drivers" in str(error.value.__cause__)


@pytest.mark.skipif(fla_mesa.cpu.accelerator_available(), reason="there is a driver")
def test_others_see_the_driver_error_as_it_was():
    """Not fla's doing: Triton's own error."""
    from triton.runtime import driver

    with pytest.raises(RuntimeError, match="active drivers") as error:
        driver.active.get_current_device()
    assert not isinstance(error.value, NotImplementedError)


def test_other_devices_are_left_alone():
    """Tensors that are not on the CPU go to fla's own function, which fails on `meta` ones only when it needs a driver."""
    taken = []
    original = inspect.unwrap(chunk_gla)
    probe = registry.StandIn(original, lambda *a, **k: taken.append(a), None)
    wrapped = registry._by_device(probe)
    x = [torch.randn(1, 4, 1, 8) for _ in range(4)]
    wrapped(None, *x)
    assert len(taken) == 1
    assert not registry.on_cpu(*(t.to("meta") for t in x))
    assert registry.on_cpu(3, None, state=x[0])
    assert not registry.on_cpu(x[0].to("meta"), x[1])
    with pytest.raises((RuntimeError, ValueError, AttributeError)) as error:  # of fla's own kernels
        chunk_gla(*(t.to("meta") for t in x))
    assert "fla/ops/gla" in "".join(str(entry.path) for entry in error.traceback)
    assert "fla_mesa/cpu/linear_attention" not in "".join(str(entry.path) for entry in error.traceback)


def test_changed_signature():
    def original(q, k, scale=None, new=1): ...

    def ours(q, k, scale=None): ...

    with pytest.raises(ImportError, match=r"(?s)new=1.*pip install .flash-linear-attention>=0\.6\.0"):
        registry._check_signature(registry.StandIn(original, ours, None))


def test_dispatch_switched_off(monkeypatch):
    monkeypatch.setattr("fla.backends._DISPATCH_DISABLED", True)
    with pytest.raises(RuntimeError, match="FLA_DISABLE_BACKEND_DISPATCH=1"):
        registry.install()


def test_names_bound_before_are_bound_anew(monkeypatch):
    """In any loaded module, so that the order of imports does not matter; other functions of the same name stay."""

    def old(): ...

    def new(): ...

    holder, other = ModuleType("holder"), ModuleType("other")
    holder.f, holder.g, other.f = old, 3, test_covered
    monkeypatch.setitem(sys.modules, "holder", holder)
    monkeypatch.setitem(sys.modules, "other", other)
    registry._rebind({id(old): (old, new)})
    assert (holder.f, holder.g, other.f) == (new, 3, test_covered)


def test_interpreter_counts_as_an_accelerator(monkeypatch):
    """There fla's own kernels run on CPU tensors, and nobody wants stand-ins."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert fla_mesa.cpu.accelerator_available()
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    assert not fla_mesa.cpu.accelerator_available()
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("mps"))
    assert not fla_mesa.cpu.accelerator_available()
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
    assert fla_mesa.cpu.accelerator_available()
