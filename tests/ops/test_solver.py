"""Conjugate gradients on tiles of very different difficulty, so that tiles are put aside while others go on."""

import pytest
import torch

from fla_mesa.ops.pytorch.solver import conjugate_gradients


class Dense:
    """The matrices A ``[Z, K, K]``; counts the rows that it is asked for."""

    def __init__(self, a, rows):
        self.a, self.rows = a, rows

    def __call__(self, p, out):
        self.rows.append(len(p))
        return torch.bmm(p, self.a, out=out)

    def diagonal(self):
        return torch.diagonal(self.a, dim1=-2, dim2=-1).unsqueeze(1)

    def select(self, tiles):
        return Dense(self.a[tiles], self.rows)


def systems(hard: int, Z: int = 16, C: int = 5, K: int = 12):
    """``Z`` tiles of which the last ``hard`` have a spread-out spectrum, the others two eigenvalues."""
    eigenvalues = torch.ones(Z, K, dtype=torch.float64)
    eigenvalues[:, 0] = 3.0
    eigenvalues[Z - hard :] = torch.logspace(0, 3, K, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(Z, K, K, dtype=torch.float64)).Q
    return basis @ (eigenvalues[:, :, None] * basis.mT), torch.randn(Z, C, K, dtype=torch.float64)


@pytest.mark.parametrize("hard", [0, 1, 4, 16])
def test_every_tile_is_solved_whoever_is_put_aside(hard):
    a, b = systems(hard)
    b[3, 2] = 0  # takes no step
    rows: list[int] = []
    x, iterations, residual = conjugate_gradients(Dense(a, rows), b.clone(), 40, 1e-10)
    torch.testing.assert_close(x, b @ a.inverse(), rtol=1e-7, atol=1e-9)
    assert iterations.shape == residual.shape == b.shape[:2] and iterations.dtype == torch.int32
    assert bool((residual <= 1e-10).all()) and int(iterations[3, 2]) == 0
    easy = len(b) - hard
    assert bool((iterations[:easy][b[:easy].any(-1)] <= 3).all())
    # All are asked for at first, nobody comes back, and in between there is a time when the easy ones have all been put aside. At which
    # step each of the hard ones stops is up to rounding.
    assert rows[0] == len(b) and rows == sorted(rows, reverse=True)
    assert hard not in (1, 4) or hard in rows
    # One by one gives the same to the tolerance: what else is in the batch makes no difference.
    for z in (0, len(b) - 1):
        alone, _, residual = conjugate_gradients(Dense(a[z : z + 1], []), b[z : z + 1].clone(), 40, 1e-10)
        assert bool((residual <= 1e-10).all())
        torch.testing.assert_close(alone[0], x[z], rtol=1e-7, atol=1e-9)


def test_steps_run_out():
    a, b = systems(4)
    x, iterations, residual = conjugate_gradients(Dense(a, []), b.clone(), 5, 1e-10)
    assert int(iterations.max()) == 5 and bool((residual[-4:] > 1e-10).all()) and bool((residual[:-4] <= 1e-10).all())
    torch.testing.assert_close((b - x @ a).norm(dim=-1) / b.norm(dim=-1), residual, rtol=1e-5, atol=1e-12)


def test_it_starts_at_the_right_hand_side_over_the_diagonal():
    a, b = systems(4)
    diagonal = torch.diagonal(a, dim1=-2, dim2=-1).unsqueeze(1)
    x, iterations, residual = conjugate_gradients(Dense(a, []), b.clone(), 0, 1e-10)
    torch.testing.assert_close(x, b / diagonal)
    torch.testing.assert_close((b - x @ a).norm(dim=-1) / b.norm(dim=-1), residual)
    assert int(iterations.max()) == 0
    # Of a diagonal matrix, that is the solution.
    a = torch.diag_embed(1 + torch.rand(3, 12, dtype=torch.float64))
    x, iterations, residual = conjugate_gradients(Dense(a, []), b[:3].clone(), 40, 1e-10)
    torch.testing.assert_close(x @ a, b[:3])
    assert int(iterations.max()) == 0 and float(residual.max()) < 1e-15


def test_nan_stays_in_its_row():
    a, b = systems(2)
    b[-1, 1, 0] = torch.nan
    x, _, residual = conjugate_gradients(Dense(a, []), b.clone(), 40, 1e-8)
    bad = x.isnan()
    assert bool(bad[-1, 1].all()) and int(bad.any(-1).sum()) == 1 and bool(residual[-1, 1].isnan())
    for steps in (0, 40):
        a[2, 5, 4] = a[2, 4, 5] = torch.nan
        x, _, residual = conjugate_gradients(Dense(a, []), b.clone(), steps, 1e-8)
        assert bool(x[2].isnan().all()) and bool(residual[2].isnan().all()) and not bool(x[3].isnan().any())
