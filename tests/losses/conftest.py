"""The ways to compute a loss that the laws are tested on."""

from collections.abc import Iterator

import numpy as np
import pytest

from ghm.losses import ops
from tests.losses.kinds import KINDS, Kind


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def interpreter() -> Iterator[None]:
    """Triton's interpreter is NumPy, which warns of the infinities and NaNs that the kernels are there to take."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(params=["vectorised", "kernels"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, interpreter: None) -> str:
    """In turn the plain PyTorch and the Triton kernels, which Triton's interpreter runs on a CPU."""
    monkeypatch.setattr(ops, "uses_kernels", lambda _tensor: request.param == "kernels")
    return request.param
