"""Laws of what all tests share."""

import io
import multiprocessing
import os
import subprocess
import sys
import threading
from multiprocessing.synchronize import Event

from tqdm import tqdm

from tests.conftest import ROOT
from tests.gpus import AT_TORCH

FORK = multiprocessing.get_context("fork")


def hold(held: Event) -> None:
    """Take the lock of progress bars, and keep it."""
    tqdm.get_lock().acquire()
    held.set()
    FORK.Event().wait()


def test_a_killed_child_does_not_stop_the_progress_bars_of_others():
    tqdm(total=1, file=io.StringIO()).close()  # makes the lock, which children inherit
    held = FORK.Event()
    child = FORK.Process(target=hold, args=(held,))
    child.start()
    assert held.wait(30)
    child.kill()
    child.join()
    bar = threading.Thread(target=lambda: tqdm(total=1, file=io.StringIO()).close(), daemon=True)
    bar.start()
    bar.join(10)
    assert not bar.is_alive()


def test_gpus_are_hidden_from_the_tests_before_torch_is_there():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            AT_TORCH.format(said='repr(os.environ["CUDA_VISIBLE_DEVICES"])', module="tests.conftest"),
        ],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "''\n"
