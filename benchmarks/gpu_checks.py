"""Checks of the losses, a step and a detector on a GPU; `benchmarks/gpu_checks.sh` runs them.

    python -m benchmarks.gpu_checks --out DIR

Each check is a function that returns a figure, or raises. They compare with the same arithmetic in float64 by plain
PyTorch, and with mmdet's modules on the device. Without a GPU the kernels run in Triton's interpreter on small inputs,
and what needs a GPU says so.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_checks_kernels as kernels  # first: it chooses how kernels run
from benchmarks import gpu_checks_losses as losses
from benchmarks import gpu_checks_training as training
from benchmarks.losses import context

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHECKS: dict[str, Callable[[], str]] = {
    "regions on the edges are PyTorch's": kernels.regions_are_exact,
    **{f"GHM-C kernels, {name}": partial(kernels.ghm_c_is_float64, dtype) for name, dtype in DTYPES.items()},
    **{f"GHM-R kernels, {name}": partial(kernels.ghm_r_is_float64, dtype) for name, dtype in DTYPES.items()},
    **{f"Focal Loss kernels, {name}": partial(kernels.focal_is_float64, dtype) for name, dtype in DTYPES.items()},
    "statistics are PyTorch's": losses.statistics_are_the_operators,
    "GHM-C, 20 steps of mmdet's": partial(losses.modules_are_mmdets, "GHMC"),
    "GHM-R, 20 steps of mmdet's": partial(losses.modules_are_mmdets, "GHMR"),
    "targets are mmdet's and the CPU's": training.targets_are_mmdets,
    "no loss waits for the device": losses.nothing_waits,
    **{f"backward, {name}": partial(losses.backward_multiplies_what_arrives, dtype) for name, dtype in DTYPES.items()},
    "a captured CUDA graph replays": losses.a_captured_graph_replays,
    "a compiled step is the eager one": losses.a_compiled_step_is_the_eager_one,
    "no step waits for the device": training.a_step_waits_for_nothing,
    "a detector finds what it finds on the CPU": training.a_detector_finds_what_it_finds_on_the_cpu,
    "24 million fp16 logits in one bin": losses.many_logits_in_one_bin_do_not_overflow,
    "2.2 billion logits": kernels.more_logits_than_32_bits_can_count,
    "GHM-C kernels, 40 bins": partial(kernels.ghm_c_is_float64, torch.float32, bins=40),
    "GHM-R kernels, 40 bins": partial(kernels.ghm_r_is_float64, torch.float32, bins=40),
    **{
        f"GHM-C kernels, C = {classes}": partial(kernels.ghm_c_is_float64, torch.bfloat16, classes)
        for classes in (1, 20, 81, 1203)
    },
    "group norm is PyTorch's": training.group_norm_is_pytorchs,
    "a device that is not current": losses.a_device_that_is_not_current,
}


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """The checks so far, as JSON and as a table."""
    (out / "gpu_checks.json").write_text(json.dumps({**context(kernels.DEVICE), "checks": rows}, indent=1) + "\n")
    lines = ["| check | result | figure | s |", "|---|---|---|---:|"]
    lines += [f"| {row['check']} | {row['result']} | {row['figure']} | {row['seconds']} |" for row in rows]
    (out / "gpu_checks.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for name, check in CHECKS.items():
        start = time.monotonic()
        try:
            result, figure = "passed", check()
        except kernels.NotRunError as reason:
            result, figure = "not run", str(reason) or "needs a GPU"
        except Exception as problem:  # a check that fails must not keep the others from running
            lines = [line for line in str(problem).splitlines() if line.strip()] or [""]
            result, figure = "FAILED", f"{type(problem).__name__}: {lines[0][:200]}"
        rows.append({"check": name, "result": result, "figure": figure, "seconds": round(time.monotonic() - start, 1)})
        print(rows[-1], file=sys.stderr, flush=True)
        write(out, rows)  # after each: none takes along what the others found
    sys.exit(any(row["result"] == "FAILED" for row in rows))


if __name__ == "__main__":
    main()
