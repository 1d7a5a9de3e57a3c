"""Checks of the losses and of a detector on a GPU; `benchmarks/gpu_checks.sh` runs them.

    python -m benchmarks.gpu_checks --out DIR

Each check is a function that returns a figure, or raises. They compare with the same arithmetic in float64 by plain
PyTorch on the CPU, and with mmdet's modules on the device. Without a GPU the kernels run in Triton's interpreter on
small inputs, and what needs a GPU says so.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from benchmarks.losses import context  # noqa: E402
from ghm import losses  # noqa: E402
from ghm.losses import density, kernels, ops, vectorised  # noqa: E402

DEVICE = "cuda" if CUDA else "cpu"
ROWS, CLASSES, BINS = (100_000, 80, 30) if CUDA else (600, 5, 30)
SIZES = [ROWS * 3 // 4, ROWS // 5, 0, ROWS - ROWS * 3 // 4 - ROWS // 5]


class NotRunError(Exception):
    """A check that has no meaning without one."""


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and weights, fresh at every call."""
    logit = (torch.randn(ROWS, CLASSES, device=DEVICE) * 3 - 3).to(dtype)
    label = torch.randint(-1, 3 * CLASSES, (ROWS,), device=DEVICE).clamp(max=CLASSES)
    return logit, label, (torch.rand(ROWS, device=DEVICE) > 0.05).float()


def boxes() -> tuple[Tensor, Tensor, Tensor]:
    """Predictions, targets and weights of boxes, fresh at every call."""
    pred, target = (torch.randn(ROWS, 4, device=DEVICE) * 0.05 for _ in range(2))
    return pred, target, (torch.rand(ROWS, 4, device=DEVICE) > 0.5).float()


def gradient_of(loss: Callable[..., Tensor], pred: Tensor, *rest: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    pred = pred.clone().requires_grad_()
    value = loss(pred, *rest, **options)
    (gradient,) = torch.autograd.grad(value.sum(), pred)
    return value.detach(), gradient


def error(found: Any, expected: Any) -> float:
    """Norm of the difference over the norm of what is expected, both tensors."""
    found, expected = found.detach(), expected.detach()
    difference = found.double().cpu() - expected.double().cpu()
    return float(difference.norm() / expected.double().norm().clamp(min=1e-30).cpu())


def at_most(limit: float, value: float) -> str:
    """The figure, or an AssertionError."""
    if not value <= limit:  # NaN too
        raise AssertionError(f"{value:.2e} > {limit:.0e}")
    return f"{value:.1e}"


def regions_are_exact() -> str:
    """Norms on every edge and beside it: counts of the kernels, and those of PyTorch's sigmoid on the same device."""
    if not CUDA:
        raise NotRunError
    worst = 0
    for bins in (2, 10, 20, 30, 49, 130):
        edge = torch.arange(1, bins, device=DEVICE) / bins
        near = torch.logit(edge.double()).float()
        steps = torch.arange(-300, 301, device=DEVICE, dtype=torch.int32)
        logit = (near.view(torch.int32)[:, None] + steps).view(torch.float32).reshape(-1, 1)
        logit = torch.cat([logit, -logit, logit, -logit])
        label = (torch.arange(len(logit), device=DEVICE) >= len(logit) // 2).long()  # 0 is positive, 1 background
        weight = torch.ones(len(logit), device=DEVICE)
        norm = density.classification_gradient_norm(logit, 1.0 - label[:, None].float())
        edges = density.region_edges(bins, end=vectorised.CLASSIFICATION_END).to(DEVICE)
        index = density.region_index(norm, norm == norm, edge_E=edges)
        expected = density.region_counts(index, bins=bins)
        found = kernels.ghm_c_count(logit, label, weight, [len(logit)], bins)[0][0]
        worst = max(worst, int((found - expected).abs().sum()))
    return at_most(0, worst)


def ghm_c_is_plain_pytorch(dtype: torch.dtype) -> str:
    """Counts, loss and gradient of the kernels, and of float32 passes on the CPU."""
    logit, label, weight = inputs(dtype)
    factor = torch.rand(len(SIZES), BINS, device=DEVICE)
    count, slot = kernels.ghm_c_count(logit, label, weight, SIZES, BINS)
    host = [tensor.cpu() for tensor in (logit, label, weight)]
    expected, host_slot = vectorised.ghm_c_count(host[0], host[1], host[2], SIZES, BINS)
    moved = float((count.cpu() - expected).abs().sum() / expected.sum())
    at_most(1e-5, moved)  # another exponential puts what lies on an edge elsewhere
    arguments = (host[0], host[1], host[2], host_slot, SIZES, factor.cpu())
    loss = kernels.ghm_c_loss(logit, label, weight, slot, SIZES, factor)
    gradient = kernels.ghm_c_gradient(logit, label, weight, slot, SIZES, factor)
    at_most(1e-3, error(loss, vectorised.ghm_c_loss(*arguments)))
    return at_most(2e-2, error(gradient, vectorised.ghm_c_gradient(*arguments)))


def focal_is_plain_pytorch() -> str:
    """Loss and gradient of the kernels, and of the passes on the CPU."""
    logit, label, weight = inputs()
    factor, worst = torch.tensor(0.3, device=DEVICE), 0.0
    for gamma in (2.0, 1.5, 0.0):
        host = (logit.cpu(), label.cpu(), weight.cpu(), gamma, 0.25, factor.cpu())
        loss = kernels.focal_loss(logit, label, weight, gamma, 0.25, factor)
        gradient = kernels.focal_gradient(logit, label, weight, gamma, 0.25, factor)
        worst = max(worst, error(loss, vectorised.focal_loss(*host)), error(gradient, vectorised.focal_gradient(*host)))
    return at_most(1e-5, worst)


def modules_are_mmdets(name: str) -> str:
    """20 steps with momentum of our module and of mmdet's on the device: value, gradient and average."""
    if not importlib.util.find_spec("mmdet"):
        raise NotRunError("mmdet is not installed")
    from ghm.registry import MODELS

    options = {"bins": BINS, "momentum": 0.75}
    ours, theirs = getattr(losses, name)(**options).to(DEVICE), MODELS.build({"type": f"mmdet.{name}", **options})
    theirs, worst = theirs.to(DEVICE), 0.0
    for _ in range(20 if CUDA else 3):
        step = inputs() if name == "GHMC" else boxes()
        (loss, gradient), (expected, slope) = gradient_of(ours, *step), gradient_of(theirs, *step)
        worst = max(worst, error(loss, expected), error(gradient, slope), error(ours.acc_sum, theirs.acc_sum))
    return at_most(1e-5, worst)


def steps() -> dict[str, Callable[[], None]]:
    """Forward and backward of every loss, on inputs that stay."""
    step, box = inputs(), boxes()
    logit, coordinate = step[0].clone().requires_grad_(), box[0].clone().requires_grad_()
    logit.grad, coordinate.grad = torch.zeros_like(logit), torch.zeros_like(coordinate)
    ghmc, ghmr = losses.GHMC(BINS, 0.75).to(DEVICE), losses.GHMR(momentum=0.7).to(DEVICE)
    focal, smooth = losses.FocalLoss(), losses.SmoothL1Loss(0.11)
    return {
        "GHMC": lambda: ghmc(logit, *step[1:], sizes=SIZES).sum().backward(),
        "GHMC, batch": lambda: losses.GHMC(BINS, statistics="batch").to(DEVICE)(logit, *step[1:]).backward(),
        "GHMR": lambda: ghmr(coordinate, *box[1:], sizes=SIZES).sum().backward(),
        "FocalLoss": lambda: focal(logit, *step[1:], avg_factor=7.0).backward(),
        "SmoothL1Loss": lambda: smooth(coordinate, *box[1:], avg_factor=7.0).backward(),
    }


def nothing_waits() -> str:
    """No loss makes the host wait, with the kernels and without."""
    if not CUDA:
        raise NotRunError
    triton = ops.TRITON
    for ops.TRITON in (triton, False):
        runs = {name: run for name, run in steps().items() if name != "GHMC, batch"}
        for run in runs.values():
            run()  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for run in runs.values():
                run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
            ops.TRITON = triton
    return "silent"


def a_captured_graph_replays() -> str:
    """A CUDA graph of forward and backward gives the eager step, on inputs that changed after the capture."""
    if not CUDA:
        raise NotRunError
    logit, label, weight = inputs()
    logit.requires_grad_()
    captured, eager = losses.GHMC(BINS, 0.75).to(DEVICE), losses.GHMC(BINS, 0.75).to(DEVICE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(captured(logit, label, weight, sizes=SIZES).sum(), logit)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = captured(logit, label, weight, sizes=SIZES)
        (gradient,) = torch.autograd.grad(value.sum(), logit)
    eager.load_state_dict(captured.state_dict())
    fresh = inputs()
    with torch.no_grad():
        for target, source in zip((logit, label, weight), fresh, strict=True):
            target.copy_(source)
    graph.replay()
    expected, slope = gradient_of(eager, *fresh, sizes=SIZES)
    return at_most(1e-6, max(error(value, expected), error(gradient, slope), error(captured.acc_sum, eager.acc_sum)))


def a_compiled_step_is_the_eager_one() -> str:
    """torch.compile with a layer before the loss, without a break in the graph."""
    if not CUDA:
        raise NotRunError
    _, label, weight = inputs()
    features = torch.randn(ROWS, 16, device=DEVICE)
    layer = torch.nn.Linear(16, CLASSES).to(DEVICE)
    loss: Any = losses.GHMC(BINS, 0.75).to(DEVICE)

    def step(features: Tensor) -> Tensor:
        return loss(layer(features), label, weight)

    results = []
    for run in (step, torch.compile(step, fullgraph=True)):
        loss.acc_sum.zero_()
        results.append((run(features), *torch.autograd.grad(run(features), [*layer.parameters()])))
    return at_most(1e-4, max(error(found, expected) for found, expected in zip(*results, strict=True)))


def many_logits_in_one_bin_do_not_overflow() -> str:
    """24 million fp16 logits alike, under autocast and a loss scale: the mean of BCE, and a gradient that is finite."""
    rows = 300_000 if CUDA else 500
    logit = torch.full((rows, 80), -3.0, dtype=torch.float16, device=DEVICE, requires_grad=True)
    label, weight = torch.full((rows,), 80, device=DEVICE), torch.ones(rows, device=DEVICE)
    module: Any = losses.GHMC(BINS, 0.75).to(DEVICE)
    with torch.autocast(DEVICE, dtype=torch.float16 if CUDA else torch.bfloat16):
        loss = [module(logit, label, weight) for _ in range(40)][-1]
    if module.acc_sum[1].item() < 0.9999 * logit.numel():
        raise AssertionError(f"counted {module.acc_sum[1].item():,.0f} of {logit.numel():,}")
    (gradient,) = torch.autograd.grad(loss * 2.0**16, logit)
    expected = 2.0**16 * torch.sigmoid(logit[0, 0].double()) / logit.numel()
    at_most(1e-2, error(gradient[0, 0], expected))
    return at_most(1e-4, error(loss, torch.nn.functional.softplus(torch.tensor(-3.0, dtype=torch.float64))))


def more_logits_than_32_bits_can_count() -> str:
    """2.2e9 logits: places are 64-bit. The last row decides."""
    if not CUDA or torch.cuda.get_device_properties(0).total_memory < 30e9:
        raise NotRunError
    rows = 27_000_000
    logit = torch.full((rows, 80), -3.0, dtype=torch.bfloat16, device=DEVICE)
    logit[-1] = 3.0
    label, weight = torch.full((rows,), 80, device=DEVICE), torch.ones(rows, device=DEVICE)
    count, slot = kernels.ghm_c_count(logit, label, weight, [rows], 10)
    if count[0].tolist() != [(rows - 1) * 80, *[0] * 8, 80]:
        raise AssertionError(f"counted {count[0].tolist()}")
    gradient = kernels.ghm_c_gradient(logit, label, weight, slot, [rows], torch.ones(1, 10, device=DEVICE))
    return at_most(1e-2, error(gradient[-1, -1], torch.sigmoid(torch.tensor(3.0))))


def a_detector_finds_what_it_finds_on_the_cpu() -> str:
    """The tiny preset, trained here: the ten best scores of every validation image, on the device and on the CPU."""
    if not importlib.util.find_spec("mmdet"):
        raise NotRunError("mmdet is not installed")
    from ghm import backbones, data, params, presets, training
    from ghm.detect.detector import Detector, find_run
    from ghm.predict import predict

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("presets", "params.yaml"):
            (shutil.copytree if (before / name).is_dir() else shutil.copy)(before / name, Path(folder) / name)
        os.chdir(folder)
        try:
            presets.apply("tiny")
            given = params.load()
            data.prepare(given)
            backbones.prepare(given)
            training.train(given, "fl_sl1", Path("runs/fl_sl1"))
            run = find_run("fl_sl1", 0)
            detectors = [Detector.open(*run, score=0.0, device=device) for device in (DEVICE, "cpu")]
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            paths = sorted(Path("data/digits/val").glob("*.jpg"))
            scores = (
                [found.score_N[:10] for _, found in predict(detector.model, detector.batches(paths))]
                for detector in detectors
            )
            worst = max(float(abs(found - expected).max()) for found, expected in zip(*scores, strict=True))
        finally:
            os.chdir(before)
    return at_most(1e-3, worst)


CHECKS: dict[str, Callable[[], str]] = {
    "regions on the edges are PyTorch's": regions_are_exact,
    "GHM-C kernels, float32": lambda: ghm_c_is_plain_pytorch(torch.float32),
    "GHM-C kernels, bfloat16": lambda: ghm_c_is_plain_pytorch(torch.bfloat16),
    "GHM-C kernels, float16": lambda: ghm_c_is_plain_pytorch(torch.float16),
    "Focal Loss kernels": focal_is_plain_pytorch,
    "GHM-C, 20 steps of mmdet's": lambda: modules_are_mmdets("GHMC"),
    "GHM-R, 20 steps of mmdet's": lambda: modules_are_mmdets("GHMR"),
    "no loss waits for the device": nothing_waits,
    "a captured CUDA graph replays": a_captured_graph_replays,
    "a compiled step is the eager one": a_compiled_step_is_the_eager_one,
    "24 million fp16 logits in one bin": many_logits_in_one_bin_do_not_overflow,
    "2.2 billion logits": more_logits_than_32_bits_can_count,
    "a detector finds what it finds on the CPU": a_detector_finds_what_it_finds_on_the_cpu,
}


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """The checks so far, as JSON and as a table."""
    (out / "gpu_checks.json").write_text(json.dumps({**context(DEVICE), "checks": rows}, indent=1) + "\n")
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
        except NotRunError as reason:
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
