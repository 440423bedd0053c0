"""The op of mLSTM in chunks, in PyTorch on any device."""

from __future__ import annotations

import torch

from fla_mesa.ops.checks import check_sequences, check_state
from fla_mesa.ops.pytorch.decay import decay
from fla_mesa.ops.pytorch.problem import accumulation_dtype
from fla_mesa.ops.pytorch.segments import CHUNK_SIZE
from fla_mesa.ops.pytorch.sums import Decays, Sums, cumulative, lower
from fla_mesa.ops.pytorch.tiles import Tiles

Tensor = torch.Tensor
States = tuple[Tensor, Tensor, Tensor]


def chunk_mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    i: Tensor,
    *,
    initial_state: States | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, States | None]:
    """Linear attention with an exponential input gate and a normalizer (Beck et al., arXiv 2405.04517, equations 19-27).

    ::

        G_t = e^g_t G_{t-1} + e^i_t k_t v_t'     z_t = e^g_t z_{t-1} + e^i_t k_t     o_t = G_t'q_t / max(|z_t'q_t|, 1)

    e^i may be too large for any dtype: G and z are kept as multiples e^-m of themselves, where ``m_t = max(g_t + m_{t-1}, i_t)``, and
    the 1 becomes e^-m. What m is does not matter to the result, so that it has no gradient.

    Args:
        q, k: Queries and keys ``[B, T, H, K]``, used as they are.
        v: Values ``[B, T, H, V]``.
        g: Logarithm of the forget gate, <= 0, ``[B, T, H]``.
        i: Logarithm of the input gate, of any sign, ``[B, T, H]``.
        initial_state: ``e^-m G [N, H, K, V]``, ``e^-m z [N, H, K]`` and ``m [N, H]`` before each sequence; zero if None.
        output_final_state: Whether to return those after it.
        cu_seqlens: Boundaries of packed sequences ``[N + 1]`` (then B = 1), or None for B sequences.

    Returns:
        ``o [B, T, H, V]`` in the dtype of v, and the final state in float32 (float64 for float64), or None.

    Raises:
        ValueError, TypeError: An argument has another shape or type.
    """
    N = check_sequences(q, k, v, {"g": g, "i": i}, cu_seqlens)
    (B, T, H, K), V = k.shape, v.shape[-1]
    dtype = accumulation_dtype(k)
    initial, m_initial = None, None
    if initial_state is not None:
        for n, (state, shape) in enumerate(zip(initial_state, ((N, H, K, V), (N, H, K), (N, H)), strict=True)):
            check_state(f"initial_state[{n}]", state, shape, q)
        G, z, m_initial = initial_state
        initial = torch.cat([G, z[..., None]], -1).to(dtype)

    tiles = Tiles(B, T, H, CHUNK_SIZE, None if cu_seqlens is None else cu_seqlens.tolist(), k.device)
    q_, k_, v_ = (tiles.split(x.to(dtype)) for x in (q, k, v))
    decays, m, m_final = _stabilised(tiles, cumulative(tiles, g), tiles.split(i.double()), m_initial, dtype)
    sums = Sums(tiles, k_, torch.cat([v_, torch.ones_like(v_[..., :1])], -1), decays, initial)
    read = sums.read(q_)
    # e^-m as float32 has it, neither infinite nor zero: what is divided by e^80 is nothing beside the rest, and no |z'q| that is not zero
    # comes near e^-80. (At unused places it is zero.)
    size = torch.maximum(read[..., V:].abs(), (-m).clamp(-80, 80).exp().to(dtype)[..., None])
    o = tiles.join(read[..., :V] / size).to(v.dtype)
    return o, (sums.final[..., :V], sums.final[..., V], m_final.to(dtype)) if output_final_state else None


def _stabilised(
    tiles: Tiles, a: Tensor, i: Tensor, m_initial: Tensor | None, dtype: torch.dtype
) -> tuple[Decays, Tensor, Tensor]:
    """Weights divided by e^m; m of every position ``[Z, C]`` and after every sequence ``[N, H]``, in float64."""
    b = i - a  # position s weighs e^(a_t + b_s) at t
    with torch.no_grad():
        largest = b.cummax(-1).values
        rows, last = tiles.batch * tiles.heads, (a[:, -1], (a + largest)[:, -1])
        kept, own = (x.unflatten(0, (rows, -1)) for x in last)
        slots = a.new_zeros(rows, tiles.last_slots[-1] + 1)
        if m_initial is not None:
            slots[:, tiles.first_slots] = tiles.split_states(m_initial).to(slots)
        for j, slot in enumerate(tiles.slot):
            slots[:, slot + 1] = torch.maximum(kept[:, j] + slots[:, slot], own[:, j])
        before, after = tiles.before(slots)[:, None], tiles.after(slots)[:, None]
        m = a + torch.maximum(before, largest)
    decays = Decays(
        inner=decay(lower(a[:, :, None] + b[:, None, :] - m[:, :, None]), dtype),
        entry=decay(a + before - m, dtype)[..., None],
        exit=decay(a[:, -1:] + b - after, dtype)[..., None],
        tile=decay(a[:, -1] + (before - after)[:, 0], dtype),
    )
    return decays, m, tiles.join_states(slots[:, tiles.last_slots])
