"""fla's own mesa_net layer on this package's op, and back."""

import fla.layers.mesa_net
import fla.ops
import fla.ops.mesa_net
import pytest
import torch

from fla_mesa.ops import chunk_mesa_net, mesa_net_decoding_one_step
from fla_mesa.ops.drop_in import replace_fla_op

PLACES = [
    (fla.ops, "chunk_mesa_net"),
    (fla.ops.mesa_net, "chunk_mesa_net"),
    (fla.ops.mesa_net, "mesa_net_decoding_one_step"),
    (fla.layers.mesa_net, "chunk_mesa_net"),
    (fla.layers.mesa_net, "mesa_net_decoding_one_step"),
]


def bindings():
    return [getattr(module, name) for module, name in PLACES]


def inner(function):
    return getattr(function, "func", None)


def test_it_replaces_every_binding_and_gives_each_back():
    before = bindings()
    undo = replace_fla_op()
    ours = {"chunk_mesa_net": chunk_mesa_net, "mesa_net_decoding_one_step": mesa_net_decoding_one_step}
    assert [inner(f) for f in bindings()] == [ours[name] for _, name in PLACES]
    undo()
    assert bindings() == before
    undo()
    assert bindings() == before


def test_as_a_context_manager_it_ends_with_an_error_too():
    before = bindings()
    with pytest.raises(ZeroDivisionError), replace_fla_op():
        _ = 1 / int(bindings() == before)
    assert bindings() == before


def test_twice_is_an_error():
    with replace_fla_op(), pytest.raises(RuntimeError, match="already replaced"):
        replace_fla_op()
    with replace_fla_op():
        pass


def test_fla_s_layer_runs_on_it(monkeypatch):
    """The layer's output is that of the exact recurrence, in training and decoding; the options reach the op."""
    seen = []
    from fla_mesa.ops import drop_in

    for name, function in list(drop_in.OURS.items()):

        def spy(*args, _function=function, _name=name, **kwargs):
            seen.append((_name, kwargs["cg_tolerance"], kwargs["backend"]))
            return _function(*args, **kwargs)

        monkeypatch.setitem(drop_in.OURS, name, spy)
    from fla.models.utils import Cache

    layer = fla.layers.mesa_net.MesaNet(hidden_size=32, num_heads=2, head_dim=16, layer_idx=0, max_cg_step_training=30)
    layer.eval()
    x = torch.randn(2, 70, 32)
    with torch.no_grad(), replace_fla_op(cg_tolerance=1e-6, backend="pytorch"):
        full = layer(x)[0]
        cache = Cache()
        first = layer(x[:, :69], past_key_values=cache, use_cache=True)[0]
        last = layer(x[:, 69:], past_key_values=cache, use_cache=True)[0]
    torch.testing.assert_close(torch.cat([first, last], 1), full, rtol=1e-4, atol=1e-5)
    assert seen == [("chunk_mesa_net", 1e-6, "pytorch")] * 2 + [("mesa_net_decoding_one_step", 1e-6, "pytorch")]
