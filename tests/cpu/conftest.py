import pytest
import torch

import fla_mesa.cpu


@pytest.fixture(autouse=True, scope="session")
def stand_ins():
    fla_mesa.cpu.enable()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
