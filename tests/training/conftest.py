"""A process that has imported everything, from which trainings are forked."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults import Trainer


@pytest.fixture(scope="module")
def trainer(tiny: Path) -> Iterator[Trainer]:
    with Trainer(GHM_DATA_ROOT=str(tiny / "store")) as made:
        yield made
