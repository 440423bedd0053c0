"""mLSTM's op against its definition: outputs, states, gradients, packing, gates of any size, bad input."""

import pytest
import torch

from fla_mesa.ops.mlstm import chunk_mlstm, naive_mlstm


def draw(B: int = 2, T: int = 150, H: int = 2, K: int = 6, V: int = 4, spread: float = 2.0) -> list[torch.Tensor]:
    """q, k, v, log gamma, i in float64."""
    q, k, v = (torch.randn(B, T, H, n, dtype=torch.float64) for n in (K, K, V))
    g = torch.empty(B, T, H, dtype=torch.float64).uniform_(0.7, 1).log()
    return [q, k, v, g, spread * torch.randn(B, T, H, dtype=torch.float64)]


def plain(state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The states themselves, from their multiples e^-m."""
    G, z, m = state
    return G * m.exp()[..., None, None], z * m.exp()[..., None]


def gradients(outputs, inputs):
    weights = [torch.sin(torch.arange(x.numel(), dtype=x.dtype)).view_as(x) for x in outputs]
    return torch.autograd.grad(sum((x * w).sum() for x, w in zip(outputs, weights, strict=True)), inputs)


@pytest.mark.parametrize("initial", [False, True])
def test_it_is_its_definition(initial):
    inputs = [x.requires_grad_() for x in draw()]
    start, scaled = None, None
    if initial:
        start = [x.requires_grad_() for x in naive_mlstm(*draw(T=9))[1]]
        m = torch.tensor([[1.0, -3.0], [0.5, 2.0]], dtype=torch.float64)
        scaled = (start[0] * (-m).exp()[..., None, None], start[1] * (-m).exp()[..., None], m)
    want, want_states = naive_mlstm(*inputs, initial_state=start)
    got, state = chunk_mlstm(*inputs, initial_state=scaled, output_final_state=True)
    got_states, given = plain(state), [*inputs, *(start or [])]
    compared = zip(
        (got, *got_states, *gradients((got, *got_states), given)),
        (want, *want_states, *gradients((want, *want_states), given)),
        strict=True,
    )
    for a, b in compared:
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11 * float(b.detach().abs().max()))


def test_gradcheck():
    inputs = [x.requires_grad_() for x in draw(B=1, T=4, H=1, K=3, V=2)]
    assert torch.autograd.gradcheck(lambda *given: chunk_mlstm(*given)[0], inputs)


@pytest.mark.parametrize("shift", [-300.0, 0.0, 300.0])
def test_input_gates_of_any_size(shift):
    """In float32, which ends at e^88, as in float64, which ends at e^709."""
    inputs = draw(spread=20.0)
    inputs[4] += shift
    want, _ = naive_mlstm(*inputs)
    given = [x.float().requires_grad_() for x in inputs]
    got, state = chunk_mlstm(*given, output_final_state=True)
    assert all(bool(torch.isfinite(x).all()) for x in (got, *state, *gradients((got,), given)))
    # q and k of float32 leave z'q so far off where it nearly cancels.
    torch.testing.assert_close(got.double(), want, rtol=1e-2, atol=1e-4 * float(want.abs().max()) + 1e-30)


def test_packed_sequences_are_separate_ones():
    lengths = (1, 70, 64, 15)
    inputs = [x.requires_grad_() for x in draw(B=1)]
    states = chunk_mlstm(*draw(B=4, T=5), output_final_state=True)[1]
    packed, ends = chunk_mlstm(
        *inputs,
        initial_state=states,
        output_final_state=True,
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0),
    )
    parts = zip(*(x.split(lengths, 1) for x in inputs), strict=True)
    alone = [
        chunk_mlstm(*part, initial_state=tuple(s[n : n + 1] for s in states), output_final_state=True)
        for n, part in enumerate(parts)
    ]
    want = torch.cat([o for o, _ in alone], 1)
    torch.testing.assert_close(packed, want, rtol=0, atol=1e-12 * float(want.detach().abs().max()))
    ends = plain(ends)
    for i, end in enumerate(ends):
        torch.testing.assert_close(end, torch.cat([plain(s)[i] for _, s in alone]), rtol=1e-10, atol=1e-10)
    for a, b in zip(gradients((packed,), inputs), gradients((want,), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * float(b.abs().max()))


def test_pieces_are_the_whole():
    inputs = draw(T=80)
    want, state, outputs = chunk_mlstm(*inputs)[0], None, []
    for piece in zip(*(x.split([1, 65, 1, 1, 12], 1) for x in inputs), strict=True):
        o, state = chunk_mlstm(*piece, initial_state=state, output_final_state=True)
        outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, 1), want, rtol=0, atol=1e-11 * float(want.abs().max()))


def test_bfloat16_goes_in_and_out():
    inputs = draw(K=32, V=32)
    want = naive_mlstm(*(x.bfloat16() for x in inputs))[0]
    got, state = chunk_mlstm(*(x.bfloat16() for x in inputs), output_final_state=True)
    assert got.dtype == torch.bfloat16 and {x.dtype for x in state} == {torch.float32}
    torch.testing.assert_close(got.double(), want, rtol=2**-7, atol=2**-8 * float(want.abs().max()))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"v": torch.ones(2, 150, 1, 4)}, ValueError, r"v must have shape \[B, T, H, V\] = \[2, 150, 2, any\]"),
        ({"i": torch.ones(2, 150, 2, 1)}, ValueError, r"i must have shape \[B, T, H\] = \[2, 150, 2\]"),
        ({"g": None}, TypeError, "g must be a tensor of float64"),
        ({"cu_seqlens": torch.tensor([0, 150])}, ValueError, "so q must have B = 1; got B = 2"),
        (
            {"initial_state": (torch.zeros(2, 2, 6, 4), torch.zeros(2, 2, 6), torch.zeros(2, 2).half())},
            TypeError,
            r"initial_state\[2\] must be float32 or float64",
        ),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        chunk_mlstm(**{**dict(zip(("q", "k", "v", "g", "i"), draw(), strict=True)), **change})
