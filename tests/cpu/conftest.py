import pytest

import fla_mesa.cpu


@pytest.fixture(autouse=True, scope="session")
def stand_ins():
    """On a machine with an accelerator importing the package has not switched them on."""
    fla_mesa.cpu.enable()
