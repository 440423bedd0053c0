"""What forget gates leave of earlier positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def decay(log: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``exp(log)`` in `dtype`, with 0 in place of what is smaller than the square root of the smallest normal number (1e-19 in float32).

    So little adds nothing to a sum that holds anything else. Its products, though, are often denormal numbers, with which Intel's
    processors multiply matrices a hundred times slower: a few heads with gates near 0 cost a training step a quarter of its time.

    Args:
        log: ``[...]``, any floating dtype, -inf included.
        dtype: A floating dtype.

    Returns:
        ``[...]``, like `log`.
    """
    least = math.sqrt(torch.finfo(dtype).tiny)
    return F.threshold(log.clamp(min=math.log(least) - 1).to(dtype).exp(), least, 0.0)
