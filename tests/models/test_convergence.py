"""Solves that end above their tolerance are counted, whatever goes round the layer."""

import pytest
import torch

from fla_mesa.layers.convergence import Convergence, Solves, counting
from fla_mesa.models import MatchedConfig, MatchedForCausalLM, MesaNetConfig, MesaNetForCausalLM
from fla_mesa.ops import SolverStats

SMALL = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "head_dim": 16,
    "intermediate_size": 32,
}


def build(**changes):
    torch.manual_seed(0)
    return MesaNetForCausalLM(MesaNetConfig(**SMALL, bos_token_id=None, eos_token_id=None, **changes))


def tokens(batch, length):
    return torch.randint(0, 32, (batch, length), generator=torch.Generator().manual_seed(1))


def test_figures_are_those_of_the_statistics():
    model, x = build(max_cg_step_training=2, cg_tolerance=1e-3), tokens(2, 40)
    layers = [block.attn for block in model.model.layers]
    for layer in layers:
        layer.record_stats = True
    with torch.no_grad(), counting(model) as solves:
        model(x)
    stats = [layer.last_stats for layer in layers]
    wanted = (
        torch.stack([s.iterations for s in stats]).double().mean().item(),
        (torch.stack([s.residual for s in stats]) > 1e-3).double().mean().item(),
    )
    assert 0 < wanted[1] < 1
    assert tuple(solves.read()) == pytest.approx(wanted)
    assert solves.read() is None  # each reading starts anew
    assert all(layer.solves is None for layer in layers)


def test_who_counts_inside_takes_what_is_solved_inside():
    model, x = build(), tokens(1, 20)
    with torch.no_grad(), counting(model) as outer:
        model(x)
        with counting(model) as inner:
            model(x), model(x)
    assert outer.read() == inner.read() is not None


def test_gradient_checkpointing_changes_no_figure():
    found = []
    for checkpointing in (False, True):
        model = build(max_cg_step_training=2)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        with counting(model) as solves:
            model(tokens(2, 40), labels=tokens(2, 40)).loss.backward()
        found.append(solves.read())
    assert tuple(found[0]) == pytest.approx(tuple(found[1])) and found[0].unsolved > 0


def test_padding_is_no_solve_and_steps_of_decoding_are():
    model = build().eval()
    with torch.no_grad(), counting(model) as solves:
        mask = torch.ones(2, 10, dtype=torch.long)
        mask[0, :4] = 0
        model(tokens(2, 10), attention_mask=mask)
        assert sum(int(sums[0]) for sums in solves._sums.values()) == 16 * 2 * 2  # tokens, heads, layers
        solves.read()
        model.generate(tokens(1, 5), max_new_tokens=3, do_sample=False)
        assert sum(int(sums[0]) for sums in solves._sums.values()) == (5 + 2) * 2 * 2


def test_a_model_without_solves_has_no_figures():
    model = MatchedForCausalLM(MatchedConfig(**SMALL, rule="delta", bos_token_id=None, eos_token_id=None))
    with torch.no_grad(), counting(model) as solves:
        model(tokens(1, 10))
    assert solves.read() is None


def test_a_back_end_that_does_not_say_what_it_left():
    solves = Solves()
    solves.add(SolverStats(torch.full((1, 4, 2), 30, dtype=torch.int32), torch.full((1, 4, 2), torch.nan)), 1e-4)
    assert solves.read() == Convergence(30.0, None)


def test_a_default_tolerance_is_the_op_s():
    assert build(cg_tolerance=None).model.layers[0].attn.tolerance == 1e-4
    assert build(cg_tolerance=1e-2).model.layers[0].attn.tolerance == 1e-2
