"""Confines NaN: earlier positions of the same tile must not see it through 0 * NaN in a product."""

from __future__ import annotations

import torch


class Nonfinite:
    """Finds NaN and infinities, removes them from the inputs, and marks everything that depends on them with NaN.

    A position s whose k, g or beta is not finite touches every output of its head from s to the end of its sequence; one of v only
    its own channel. (One of q touches its own row alone and needs no help.) When all is finite, each method returns what it gets.

    Args:
        k, v, g, beta: ``[B, T, H, K]``, ``[B, T, H, V]``, ``[B, T, H]``, ``[B, T, H]``.
        cu_seqlens: Boundaries of packed sequences, or None.
    """

    def __init__(
        self, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, cu_seqlens: torch.Tensor | None
    ):
        # One pass over the data; a sum that overflows by itself is no harm, the search below then finds nothing.
        # A gate of 0 has g = -inf: that one is no fault.
        self.found = not bool(torch.isfinite(k.sum() + v.sum() + g.nan_to_num(neginf=0).sum() + beta.sum()))
        if not self.found:
            return
        bad_gate = ~(torch.isfinite(g) | (g == -torch.inf))
        bad_head = ~torch.isfinite(k).all(-1) | bad_gate | ~torch.isfinite(beta)  # [B, T, H]
        self.bad = bad_head.unsqueeze(-1) | ~torch.isfinite(v)  # [B, T, H, V]
        self.bad_head, self.cu_seqlens = bad_head, cu_seqlens

    def _touched(self, bad: torch.Tensor) -> torch.Tensor:
        """Whether there is a fault at or before each position of its sequence; same shape."""
        count = bad.cumsum(1)
        if self.cu_seqlens is None:
            return count > 0
        starts = self.cu_seqlens.to(bad.device, torch.long)
        before = torch.cat([torch.zeros_like(count[:, :1]), count], 1)[:, starts[:-1]]
        return count > before.repeat_interleave(starts.diff(), 1)

    def clean(self, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The inputs with zeros in place of the faults."""
        if not self.found:
            return k, v, g, beta
        head = self.bad_head
        return (
            k.masked_fill(head[..., None], 0),
            v.masked_fill(self.bad, 0),
            g.masked_fill(head, 0),
            beta.masked_fill(head, 0),
        )

    def mark(self, x: torch.Tensor, channels: bool = False) -> torch.Tensor:
        """``x [B, T, H, ...]`` with NaN at everything that depends on a fault, per value channel if x has those."""
        if not self.found:
            return x
        touched = self._touched(self.bad if channels else self.bad_head)
        return x.masked_fill(touched.reshape(touched.shape + (1,) * (x.ndim - touched.ndim)), torch.nan)

    def mark_states(self, h_kk: torch.Tensor, h_kv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Final states with NaN at everything that depends on a fault."""
        if not self.found:
            return h_kk, h_kv
        last = slice(-1, None) if self.cu_seqlens is None else self.cu_seqlens[1:].to(h_kk.device, torch.long) - 1
        head, channel = (
            self._touched(self.bad_head)[:, last],
            self._touched(self.bad)[:, last],
        )  # [B, 1, H], or [1, N, H]
        head, channel = head.flatten(0, 1), channel.flatten(0, 1)
        return h_kk.masked_fill(head[..., None, None], torch.nan), h_kv.masked_fill(channel[..., None, :], torch.nan)
