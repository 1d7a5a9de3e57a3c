"""With `sync` the statistics and the gradient are those of the whole batch, however many processes share it."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from tests.losses.kinds import Kind, run

SIZES = [12, 4]  # rows of each population, halved between two processes
OPTIONS = [
    {"sync": True},
    {"sync": True, "statistics": "batch"},
    {"sync": True, "smoothing": "positives"},
    {"sync": False},
]


def batch(name: str) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    rows = sum(SIZES)
    if name == "GHMC":
        return torch.randn(rows, 3) * 3, torch.randint(0, 4, (rows,)), (torch.rand(rows) > 0.2).float()
    return torch.randn(rows, 4) * 0.03, torch.zeros(rows, 4), (torch.rand(rows, 4) > 0.2).float()


def share(step: tuple[torch.Tensor, ...], rank: int) -> tuple[torch.Tensor, ...]:
    """Every other row of each population."""
    return tuple(torch.cat([part[rank::2] for part in tensor.split(SIZES)]) for tensor in step)


def process(rank: int, port: str, folder: str) -> None:
    """What each of two processes does: a step of every option, written to a file."""
    from tests.losses.kinds import KINDS

    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for kind in KINDS:
        for number, options in enumerate(OPTIONS):
            module = kind.ours(momentum=0.5, **options)
            step = share(batch(kind.name), rank)
            steps = [run(module, *step, sizes=[size // 2 for size in SIZES]) for _ in range(2)]
            found[f"{kind.name}-{number}"] = (*steps[-1], module.acc_sum)
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("sync")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = "import sys; from tests.losses.test_sync import process; process(int(sys.argv[1]), *sys.argv[2:])"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(rank), port, str(folder)], env=environment)
        for rank in range(2)
    ]
    assert [each.wait(timeout=120) for each in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_two_processes_are_one_with_all_of_the_batch(kind: Kind, found: list[dict], number: int) -> None:
    options = {key: value for key, value in OPTIONS[number].items() if key != "sync"}
    whole = kind.ours(momentum=0.5, **options)
    loss, gradient = [run(whole, *batch(kind.name), sizes=SIZES) for _ in range(2)][-1]
    losses, gradients, averages = zip(*(each[f"{kind.name}-{number}"] for each in found), strict=True)
    torch.testing.assert_close((losses[0] + losses[1]) / 2, loss)
    for rank in range(2):
        # DistributedDataParallel divides the sum of the processes' gradients by their number.
        torch.testing.assert_close(gradients[rank] / 2, share((gradient,), rank)[0])
        torch.testing.assert_close(averages[rank], whole.acc_sum)


def test_without_sync_each_process_has_its_own_statistics(kind: Kind, found: list[dict]) -> None:
    averages = [each[f"{kind.name}-3"][2] for each in found]
    assert not torch.allclose(*averages)
