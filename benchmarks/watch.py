"""What a computation does: its operators, those that would have the host wait for a GPU, and the time of its parts."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ghm.losses import ops, vectorised

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount")


class Count(TorchDispatchMode):
    """Counts operators, and those that would have the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.operators[name] += 1
        masks = [
            index
            for index in (args[1] if name.startswith(("aten.index.", "aten.index_put")) else [])
            if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
        ]
        # One value by a mask is a masked_fill, which does not wait.
        if any(word in name for word in WAITS) or (masks and not ("index_put" in name and args[2].numel() == 1)):
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Count]:
    """Operators of the block, by the path that a device takes; a pass of a loss counts as one."""
    on_device = patch.object(vectorised, "on_host", lambda _tensor: False)
    with on_device, patch.object(ops, "is_eager", lambda _tensor: False), Count() as count:
        yield count


class Clock:
    """Seconds of parts of a step, each without what is timed inside of it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def time(self, part: str, owner: Any, name: str) -> None:
        """Time the method `name` of `owner` from now on."""
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            self._inside.append(0.0)
            result = inner(*args, **kwargs)
            spent = time.perf_counter() - start
            self.seconds[part] += spent - self._inside.pop()
            if self._inside:
                self._inside[-1] += spent
            return result

        setattr(owner, name, timed)
