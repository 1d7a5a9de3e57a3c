"""What of a computation would have the host wait for a device, counted on a CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.watch import Count, counted
from ghm.losses import vectorised

PASSES = [f"{name}_{kind}" for name in ("ghm_c", "ghm_r") for kind in ("count", "loss_and_gradient")]
PASSES += ["focal_loss_and_gradient"]


class _Fetches(TorchFunctionMode):
    """Counts the calls that fetch values from a device and are no operators."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__):
            self.count.waits[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def all_counted() -> Iterator[Count]:
    """Operators and waits of the block, by the path that a device takes, inside of the losses' own operators too."""
    with pytest.MonkeyPatch.context() as patch, counted() as count, _Fetches(count):

        def looked_into(inner: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any) -> Any:
                with count:  # PyTorch has laid it aside for what an operator does
                    return inner(*arguments)

            return run

        for name in PASSES:
            patch.setattr(vectorised, name, looked_into(getattr(vectorised, name)))
        yield count
