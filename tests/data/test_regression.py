"""In-context regression: what is drawn is what is said, and the optimum is that of linear algebra done another way."""

import numpy as np
import pytest
import torch

from fla_mesa.data import DataRequest, load_data
from fla_mesa.data.regression import Regression, features


def covariance(task: Regression, x: np.ndarray) -> np.ndarray:
    """Of the y of one sequence given its x: of a stationary process of the first order, seen through u."""
    u = x / np.sqrt(task.dimension)
    apart = np.abs(np.subtract.outer(np.arange(task.length), np.arange(task.length)))
    return (1 - task.drift) ** (apart / 2) * (u @ u.T) + task.noise**2 * np.eye(task.length)


@pytest.mark.parametrize("drift", [0.0, 0.05, 0.5])
def test_the_optimum_is_the_conditional_expectation(drift):
    """By the joint covariance of all y, which knows of no filter."""
    task = Regression(dimension=3, length=12, noise=0.4, drift=drift, test=5)
    test = task.split("test").arrays
    for x, y, found in zip(test["x"], test["y"], test["optimum"], strict=True):
        K = covariance(task, x)
        expected = [K[t, :t] @ np.linalg.solve(K[:t, :t], y[:t]) if t else 0.0 for t in range(task.length)]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_without_drift_the_optimum_is_ridge_regression():
    task = Regression(dimension=4, length=20, noise=0.3, test=3)
    test = task.split("test").arrays
    for x, y, found in zip(test["x"], test["y"], test["optimum"], strict=True):
        u = x / 2.0
        for t in range(20):
            H = u[:t].T @ u[:t] + 0.09 * np.eye(4)
            np.testing.assert_allclose(found[t], u[t] @ np.linalg.solve(H, u[:t].T @ y[:t]), atol=1e-12)


@pytest.mark.parametrize("drift", [0.0, 0.1])
def test_sequences_have_the_covariance_that_is_said(drift):
    task = Regression(dimension=2, length=6, noise=0.5, drift=drift, test=4000)
    test = task.split("test").arrays
    assert np.allclose((test["x"] ** 2).sum(-1), 2)
    # Whitened by the covariance given x, the y of a sequence are independent, of variance 1.
    white = np.stack(
        [np.linalg.solve(np.linalg.cholesky(covariance(task, x)), y) for x, y in zip(test["x"], test["y"], strict=True)]
    )
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(6), atol=6 / np.sqrt(len(white)))


def test_the_optimum_knows_nothing_of_what_is_to_come():
    task = Regression(length=10, test=4)
    test = task.split("test").arrays
    x, y = test["x"].copy(), test["y"].copy()
    x[:, 6:], y[:, 5:] = 1.0, 9.0
    assert np.array_equal(task.optimum(x, y)[:, :6], test["optimum"][:, :6])


def test_rows_are_what_the_optimum_sees():
    task = Regression(dimension=3, length=5, test=4)
    test, rows = task.split("test").arrays, task.split("test")
    row = rows[2]
    assert len(rows) == 4 and row["features"].shape == (5, 4) and row["labels"].shape == (5,)
    assert row["features"].dtype == row["labels"].dtype == torch.float32
    np.testing.assert_allclose(row["labels"], test["y"][2], rtol=1e-6)
    np.testing.assert_allclose(row["features"], features(test["x"], test["y"])[2], rtol=1e-6)
    assert row["features"][0, 3] == 0 and torch.equal(row["features"][1:, 3], row["labels"][:-1])
    with pytest.raises(IndexError):
        rows[4]


def test_splits_and_seeds_are_different_draws():
    drawn = [
        Regression(seed=seed).split(name)[0]["labels"] for seed in (0, 1) for name in ("train", "validation", "test")
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    assert torch.equal(Regression().split("train")[7]["features"], Regression(drift=0.0).split("train")[7]["features"])


def test_as_a_source():
    splits = load_data(DataRequest("regression:dimension=4,length=10,drift=0.02,train=7", say=lambda _: None))
    assert (splits.features, splits.seq_len, len(splits.train), splits.bytes_per_token) == (5, 10, 7, None)
    other = load_data(DataRequest("regression:dimension=4,length=10,drift=0.03,train=7", say=lambda _: None))
    assert other.sha256 != splits.sha256


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("noise=0", "noise must be a number > 0, got 0"),
        ("drift=1", r"drift must be a number in \[0, 1\), got 1"),
        ("dimension=0.5", "dimension must be an integer >= 1, got 0.5"),
        ("length=1", "length must be an integer >= 2, got 1"),
        ("width=8", "unknown setting 'width'; allowed: dimension, length, noise, drift, train, validation, test, seed"),
        ("noise", "settings must be key=value"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=f"regression: {message}"):
        load_data(DataRequest(f"regression:{settings}"))


def test_options_of_text_mean_nothing():
    with pytest.raises(ValueError, match="seq_len: does not apply to --data regression"):
        load_data(DataRequest("regression", seq_len=32))
