"""States between tiles: the Mesa layer's H and G side by side, ``[R, slots, K, K + V]``, forwards and backwards in time."""

from __future__ import annotations

import torch

from fla_mesa.ops.pytorch.tiles import Tiles


def scan_states(tiles: Tiles, update: torch.Tensor, decay: torch.Tensor, initial: torch.Tensor | None) -> torch.Tensor:
    """The state before every tile and after every sequence: ``S_{j+1} = decay_j S_j + update_j``.

    Args:
        tiles: The layout.
        update: What each tile adds, ``[Z, K, D]``.
        decay: ``[Z]``.
        initial: States before each sequence, ``[N, H, K, D]``; zero if None.

    Returns:
        ``[R, J + sequences of a row, K, D]``; ``Tiles.slot[j]`` is the slot before tile j of a row, the next one that after it.
    """
    rows = tiles.batch * tiles.heads
    update, decay = update.unflatten(0, (rows, -1)), decay.view(rows, -1, 1, 1)
    states = update.new_empty(rows, tiles.last_slots[-1] + 1, *update.shape[2:])
    states[:, tiles.first_slots] = 0 if initial is None else tiles.split_states(initial).to(states)
    for j, slot in enumerate(tiles.slot):
        torch.addcmul(update[:, j], decay[:, j], states[:, slot], out=states[:, slot + 1])
    return states


def scan_adjoints(tiles: Tiles, update: torch.Tensor, decay: torch.Tensor, final: torch.Tensor | None) -> torch.Tensor:
    """The gradient of every state that :func:`scan_states` returns: ``dS_j = decay_j dS_{j+1} + update_j``.

    Args:
        tiles: The layout.
        update: What the outputs of each tile ask of the state before it, ``[Z, K, D]``.
        decay: ``[Z]``.
        final: Gradients of the states after each sequence, ``[N, H, K, D]``; zero if None.

    Returns:
        ``[R, J + sequences of a row, K, D]``, same slots.
    """
    rows = tiles.batch * tiles.heads
    update, decay = update.unflatten(0, (rows, -1)), decay.view(rows, -1, 1, 1)
    adjoints = update.new_empty(rows, tiles.last_slots[-1] + 1, *update.shape[2:])
    adjoints[:, tiles.last_slots] = 0 if final is None else tiles.split_states(final).to(adjoints)
    for j, slot in reversed(list(enumerate(tiles.slot))):
        torch.addcmul(update[:, j], decay[:, j], adjoints[:, slot + 1], out=adjoints[:, slot])
    return adjoints
