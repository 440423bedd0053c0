"""Whatever says "these are several documents", "this is padding" or "these are the targets" is honoured or refused, by every family.

One table of cases for all: a keyword that a model drops makes documents leak into each other, which nobody would notice.
"""

import copy
import re

import pytest
import torch
from fla.models.utils import Cache

from fla_mesa.layers.matched import RULES
from fla_mesa.models import MatchedConfig, MatchedForCausalLM, MesaNetConfig, MesaNetForCausalLM, zoo

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "head_dim": 16,
    "vocab_size": 64,
    "initializer_range": 0.2,
}
HYBRID = {"attn": {"layers": [1], "num_heads": 2, "num_kv_heads": 1}}
MODELS = {
    "mesanet": lambda: MesaNetForCausalLM(MesaNetConfig(**TINY)),
    "hybrid": lambda: MesaNetForCausalLM(MesaNetConfig(**TINY, **HYBRID)),
    **{
        f"matched {rule}": lambda rule=rule: MatchedForCausalLM(MatchedConfig(rule=rule, **TINY))
        for rule in RULES
        if rule != "mesa"
    },
}

# Fla's own, run by the stand-ins, and transformers' xLSTM.
TOKENS = {"vocab_size": 64, "bos_token_id": 62, "eos_token_id": 62, "pad_token_id": 63, "max_position_embeddings": 64}
OTHERS = {
    name: lambda name=name: zoo.build(name, "2x32", **TOKENS)
    for name in ("mesa_net", "delta_net", "gated_deltanet", "kda", "gla", "mamba2", "retnet", "transformer", "xlstm")
}

# A row of three documents of 7, 1 and 16 tokens.
LENGTHS = (7, 1, 16)
T = sum(LENGTHS)
CU = torch.tensor([0, 7, 8, 24], dtype=torch.int32)
IDX = torch.repeat_interleave(torch.tensor([3, 0, 1]), torch.tensor(LENGTHS))[None]
POSITIONS = torch.cat([torch.arange(n) for n in LENGTHS])[None]
ONES = torch.ones(1, T, dtype=torch.int64)

SAID = {
    "cu_seqlens": {"cu_seqlens": CU},
    "cu_seqlens, int64": {"cu_seqlens": CU.long()},
    "cu_seq_lens_q": {"cu_seq_lens_q": CU},
    "transformers' four": {"cu_seq_lens_q": CU, "cu_seq_lens_k": CU.clone(), "max_length_q": 16, "max_length_k": 16},
    "maxima as tensors": {"cu_seq_lens_q": CU, "max_length_q": torch.tensor(16)},
    "seq_idx": {"seq_idx": IDX},
    "seq_idx, int32": {"seq_idx": IDX.int()},
    "position_ids": {"position_ids": POSITIONS},
    "position_ids that start elsewhere": {"position_ids": POSITIONS + 5},
    "flattening collator": {"cu_seq_lens_q": CU, "seq_idx": IDX, "position_ids": POSITIONS, "attention_mask": ONES},
    "flame": {"cu_seqlens": CU, "position_ids": POSITIONS},
    "positions of one document, as generate's": {"cu_seqlens": CU, "position_ids": torch.arange(T)[None]},
}
REFUSED = {
    "cu_seq_lens_k alone": ({"cu_seq_lens_k": CU}, ValueError, "pass cu_seqlens or cu_seq_lens_q"),
    "max_length_q alone": ({"max_length_q": 16}, ValueError, "max_length_q comes with .*: pass cu_seqlens"),
    "a maximum that is none": (
        {"cu_seqlens": CU, "max_length_k": 9},
        ValueError,
        "max_length_k must be at least .* 16; got 9",
    ),
    "other keys than queries": (
        {"cu_seq_lens_q": CU, "cu_seq_lens_k": CU[[0, 3]]},
        ValueError,
        "cu_seq_lens_k must equal",
    ),
    "two boundaries": (
        {"cu_seqlens": CU, "cu_seq_lens_q": CU[[0, 3]]},
        ValueError,
        "cu_seq_lens_q must equal cu_seqlens",
    ),
    "not ending at T": (
        {"cu_seqlens": CU - CU[1]},
        ValueError,
        "cu_seqlens must start at 0 and end at the length 24; got -7 and 17",
    ),
    "an empty document": (
        {"cu_seqlens": CU[[0, 1, 1, 3]]},
        ValueError,
        "cu_seqlens must increase; got 7 and then 7 at index 1",
    ),
    "boundaries in float": (
        {"cu_seqlens": CU.float()},
        TypeError,
        "cu_seqlens must be an int32 or int64 tensor; got torch.float32",
    ),
    "boundaries as a list": (
        {"cu_seq_lens_q": CU.tolist()},
        TypeError,
        "cu_seq_lens_q must be an int32 or int64 tensor; got list",
    ),
    "boundaries of two rows": ({"cu_seqlens": CU[None]}, ValueError, r"cu_seqlens must have shape \[N \+ 1\]"),
    "seq_idx of another length": ({"seq_idx": IDX[:, 1:]}, ValueError, r"seq_idx must have shape \[1, 24\]"),
    "seq_idx against boundaries": (
        {"cu_seqlens": CU[[0, 1, 3]], "seq_idx": IDX},
        ValueError,
        "seq_idx starts .* cu_seqlens does not",
    ),
    "positions against boundaries": (
        {"cu_seqlens": CU[[0, 1, 3]], "position_ids": POSITIONS},
        ValueError,
        "position_ids starts a sequence where cu_seqlens does not",
    ),
    "a jump in positions": (
        {"position_ids": torch.arange(T)[None] + 5 * (torch.arange(T) >= 9)},
        ValueError,
        "got a step of 6 at token 9: pass cu_seqlens or seq_idx",
    ),
    "positions in float": ({"position_ids": POSITIONS.float()}, TypeError, "position_ids must be a tensor of integers"),
    "positions of three axes": (
        {"position_ids": POSITIONS.expand(3, 1, T)},
        ValueError,
        r"position_ids must have shape \[1, 24\]",
    ),
    "a mask of two rows": (
        {"attention_mask": torch.ones(2, T)},
        ValueError,
        r"attention_mask must be .*\[batch = 1.*got shape \[2, 24\]",
    ),
    "a mask of numbers": ({"attention_mask": IDX + 1}, ValueError, "attention_mask must be .*pass seq_idx"),
    "a mask of four axes": ({"attention_mask": torch.ones(1, 1, T, T)}, ValueError, "attention_mask must be"),
    "a misspelt keyword": ({"cu_seqlen": CU}, TypeError, "does not take cu_seqlen; did you mean cu_seqlens?"),
    "another misspelt one": ({"atention_mask": ONES}, TypeError, "did you mean attention_mask?"),
    "an unknown keyword": ({"nonsense": 1}, TypeError, "does not take nonsense; It takes input_ids, attention_mask"),
    "attention weights": ({"output_attentions": True}, ValueError, "output_attentions must be False"),
    "labels of another shape": (
        {"labels": ONES[:, 1:]},
        ValueError,
        r"labels must have the shape of the input, \[1, 24\]",
    ),
    "targets of another shape": (
        {"shift_labels": ONES[:, 1:]},
        ValueError,
        "shift_labels must have the shape of the input",
    ),
}


@pytest.fixture(scope="module")
def models():
    """Built once: nothing below changes a model."""
    built = {}

    def get(name):
        if name not in built:
            torch.manual_seed(1)
            built[name] = (MODELS | OTHERS)[name]().eval()
        return built[name]

    return get


def tokens(batch: int, length: int = T) -> torch.Tensor:
    return torch.randint(0, 64, (batch, length))


def assert_same(got: torch.Tensor, want: torch.Tensor, case: str = "") -> None:
    """To 1e-4 of the largest entry: the solver's tolerance, for a different order of the same work."""
    worst = float((got - want).abs().max() / want.abs().max())
    assert worst < 1e-4, case


@pytest.mark.parametrize("name", MODELS | OTHERS)
def test_documents_are_separate_however_it_is_said(models, name):
    model, x = models(name), tokens(1)
    with torch.no_grad():
        want = torch.cat([model(part).logits for part in x.split(LENGTHS, 1)], 1)
        for case, said in SAID.items():
            assert_same(model(x, **said).logits, want, case)
        assert_same(model(inputs_embeds=model.get_input_embeddings()(x), **SAID["seq_idx"]).logits, want)


@pytest.mark.parametrize("name", MODELS)
def test_documents_in_several_rows_and_under_padding(models, name):
    """What boundaries of one row cannot say, numbers and positions can: documents in rows that have padding, too."""
    model, x = models(name), tokens(2)
    idx, mask = torch.cat([IDX, IDX.flip(1)]), torch.ones(2, T, dtype=torch.bool)
    mask[0, 20:], mask[1, :2], mask[1, 4] = False, False, False
    positions = torch.zeros_like(idx)
    with torch.no_grad():
        want = torch.zeros(2, T, 64)
        for row in range(2):
            for document in range(4):
                at = (idx[row] == document) & mask[row]
                if at.any():
                    want[row, at] = model(x[row, at][None]).logits[0]
                    positions[row, at] = torch.arange(int(at.sum()))
        for said in ({"seq_idx": idx}, {"position_ids": positions}):
            assert_same(model(x, attention_mask=mask, **said).logits[mask], want[mask])
        with pytest.raises(ValueError, match=r"cu_seqlens describes sequences packed into one row; got a batch of 2"):
            model(x, cu_seqlens=CU)
        with pytest.raises(ValueError, match="cached"):
            model(x, seq_idx=idx, use_cache=True)


@pytest.mark.parametrize("name", MODELS | OTHERS)
def test_what_cannot_be_honoured_is_refused(models, name):
    not_told_by_fla = ("attention weights", "labels of another shape", "targets of another shape")
    for case, (keywords, error, message) in REFUSED.items():
        if name in OTHERS and name != "xlstm" and case in not_told_by_fla:
            continue
        with pytest.raises(error) as raised:
            models(name)(tokens(1), **keywords)
        assert re.search(message, str(raised.value)), (case, str(raised.value))


@pytest.mark.parametrize("name", MODELS | OTHERS)
def test_inputs_that_are_none(models, name):
    model = models(name)
    for shape in ((2, 0), (0, 4)):
        with pytest.raises(ValueError, match="the input must hold at least one token in at least one row; got batch"):
            model(torch.zeros(shape, dtype=torch.int64))
    if name in OTHERS:
        return
    with pytest.raises(ValueError, match=r"input_ids must have shape \[B, T\]; got \[4\]"):
        model(torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="pass either input_ids or inputs_embeds; got neither"):
        model()
    with pytest.raises(TypeError, match="Expected an FLA cache"):
        model(tokens(1), past_key_values=object())


class Cached:
    """A model's calls with one cache, whatever the model calls it."""

    def __init__(self, model):
        self.model, self.name, self.cache = model, "past_key_values", Cache()
        if hasattr(model.config, "inference_state_dtype"):
            self.name, self.cache = "cache_params", None

    def __call__(self, x, use_cache=True, **keywords):
        out = self.model(x, use_cache=use_cache, **{self.name: self.cache}, **keywords)
        if use_cache:
            self.cache = out[self.name]
        return out.logits


@pytest.mark.parametrize("name", [*MODELS, "transformer", "xlstm"])
def test_padding_on_any_side_with_a_cache(models, name):
    """In the first call, in later ones, in rows that have no token in a call; and a later call may leave the mask out.

    In float64: Gated KalmaNet's systems make 1e-4 of the rounding of float32.
    """
    model, x = copy.deepcopy(models(name)).double(), tokens(3, 20)
    mask = torch.ones_like(x)
    mask[0, 5:9], mask[1, :4], mask[1, 10:], mask[2, 3:12] = 0, 0, 0, 0
    with torch.no_grad():
        for pieces in ([20], [12, 1, 7], [7, *[1] * 6, 7]):
            cached, got, end = Cached(model), [], 0
            for piece in x.split(pieces, 1):
                end += piece.shape[1]
                if bool(mask[:, end - piece.shape[1] : end].any()):
                    got.append(cached(piece, attention_mask=mask[:, :end]))
            new = tokens(3, 3)
            got = torch.cat([*got, cached(new)], 1)
            for row in range(3):
                at = torch.cat([mask[row] == 1, torch.ones(3, dtype=torch.bool)])
                alone = torch.cat([x[row], new[row]])[at][None]
                assert_same(got[row, at], model(alone).logits[0], f"{pieces}, row {row}")


@pytest.mark.parametrize("name", [*MODELS, "transformer", "xlstm"])
def test_a_cache_is_left_alone_unless_it_is_to_be_filled(models, name):
    model, x = models(name), tokens(2, 12)
    with torch.no_grad():
        want, cached = model(x).logits, Cached(model)
        cached(x[:, :8])
        for _ in range(2):
            assert_same(cached(x[:, 8:], use_cache=False), want[:, 8:])


@pytest.mark.parametrize("name", MODELS | OTHERS)
def test_shifted_labels_give_the_same_loss(models, name):
    model, x = models(name), tokens(2)
    labels = x.clone()
    labels[0, :5] = -100
    shifted = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], 1)
    with torch.no_grad():
        want = model(x, labels=labels)
        for keywords in ({"shift_labels": shifted}, {"shift_labels": shifted, "labels": x}):
            torch.testing.assert_close(model(x, **keywords).loss, want.loss)
        count = int((shifted != -100).sum())
        torch.testing.assert_close(model(x, shift_labels=shifted, num_items_in_batch=2 * count).loss, want.loss / 2)


@pytest.mark.parametrize("width", [32, 64])
def test_xlstm_trains_at_small_widths_whatever_its_configuration_says_of_the_cache(width):
    model = zoo.build("xlstm", f"2x{width}", **TOKENS).train()
    assert model.config.use_cache
    x = tokens(2, 70)
    model(x, labels=x).loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    with pytest.raises(ValueError, match="use_cache must be False in training"):
        model(x, labels=x, use_cache=True)


@pytest.mark.parametrize("name", ["gla", "mamba2", "transformer", "xlstm"])
def test_a_shard_of_a_row_is_refused_by_what_cannot_be_cut(models, name):
    with pytest.raises(ValueError, match=r"cp_context: .* cannot be split over ranks"):
        models(name)(tokens(1), cp_context=object())


def test_boundaries_of_the_trainers_evaluation_need_no_cache_to_be_off(models):
    """In eval mode the configuration's use_cache would have packed documents refused, were it not turned off."""
    for name in ("hybrid", "xlstm"):
        with torch.no_grad():
            assert models(name)(tokens(1), cu_seqlens=CU).loss is None
        with torch.no_grad(), pytest.raises(ValueError, match="cannot be cached"):
            models(name)(tokens(1), cu_seqlens=CU, use_cache=True)
