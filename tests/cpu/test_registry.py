"""How the stand-ins get in place, what they leave alone, and what is said where there is none."""

import importlib
import inspect
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


def test_uncovered_entry_point():
    x = [torch.randn(1, 16, 2, 16) for _ in range(6)]
    with pytest.raises(NotImplementedError) as error:
        chunk_rwkv7(*x)
    message = str(error.value)
    assert "fla.ops.rwkv7" in message
    assert "no stand-in" in message
    for covered in ("gated_deltanet", "transformer", "chunk_gla", "chunk_kda", "causal_conv1d"):
        assert covered in message
    assert "active drivers" in str(error.value.__cause__)


def test_others_see_the_driver_error_as_it_was():
    """Not fla's doing: Triton's own error."""
    from triton.runtime import driver

    if not fla_mesa.cpu.accelerator_available():
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
    with pytest.raises(Exception, match=r".") as error:  # whatever it is, it comes from fla's own kernels
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
