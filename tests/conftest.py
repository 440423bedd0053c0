"""Settings for every test. The folder interpreter/ needs a process of its own and brings its own conftest."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # tests run in parallel on few cores: waiting threads must not spin

import torch

import fla_mesa  # noqa: F401 (the stand-ins for fla's kernels, before any test imports fla)

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first: at the end, all processes but one would wait for it."""
    items.sort(key=lambda item: "test_readme" not in item.nodeid)
