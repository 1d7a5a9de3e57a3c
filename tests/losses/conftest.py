"""The ways to compute a loss that the laws are tested on."""

from collections.abc import Iterator

import numpy as np
import pytest

from ghm.losses import host, ops
from tests.losses.kinds import KINDS, Kind


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def interpreter() -> Iterator[None]:
    """Triton's interpreter is NumPy, which warns of the infinities and NaNs that the kernels are there to take."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(params=["vectorised", "host", "kernels"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, interpreter: None) -> str:
    """In turn plain PyTorch, the C of a CPU, and the Triton kernels, which Triton's interpreter runs on a CPU."""
    monkeypatch.setattr(ops, "uses_kernels", lambda _tensor: request.param == "kernels")
    if request.param == "vectorised":
        monkeypatch.setattr(host, "library", lambda: None)
    elif request.param == "host":
        assert host.library(), "the C compiler that Triton needs, too, is on the machine of the tests"
    return request.param
