"""The checks of `benchmarks.gpu_checks` of the losses as a program calls them: alone, captured and compiled."""

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

# First: it chooses how kernels run.
from benchmarks.gpu_checks_kernels import (
    BINS,
    CLASSES,
    CUDA,
    DEVICE,
    LIMITS,
    MU,
    ROWS,
    SIZES,
    NotRunError,
    at_most,
    boxes,
    error,
    inputs,
    need_mmdet,
)
from ghm import losses
from ghm.losses import ops


def gradient_of(loss: Callable[..., Tensor], pred: Tensor, *rest: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    pred = pred.clone().requires_grad_()
    value = loss(pred, *rest, **options)
    (gradient,) = torch.autograd.grad(value.sum(), pred)
    return value.detach(), gradient


def backward_multiplies_what_arrives(dtype: torch.dtype) -> str:
    """The gradients for what arrives from above, 1 or another number, of one graph that is kept, in both orders."""
    step, box, worst = inputs(dtype), boxes(dtype), 0.0
    factor_LK, scale = torch.rand(len(SIZES), BINS, device=DEVICE), torch.tensor(0.3, device=DEVICE)
    _, slot = ops.ghm_c_count(*step, SIZES, BINS)
    _, length = ops.ghm_r_count(*box, SIZES, BINS, MU)
    above = torch.rand(len(SIZES), device=DEVICE) + 0.5
    level_N = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES)).to(DEVICE)
    cases: list[tuple[Any, tuple, Tensor, Tensor]] = [
        (ops.ghm_c, (*step, slot, SIZES, factor_LK), above, above[level_N, None]),
        (ops.ghm_r, (*box, length, SIZES, factor_LK, MU), above, above[level_N, None]),
        (ops.focal, (*step, 2.0, 0.25, scale), above[0], above[0]),
    ]
    for loss, (pred, *rest), upstream, multiple in cases:
        slope = loss.gradient(pred, *rest).double()
        pred.requires_grad_()
        given = [(torch.ones_like(upstream), slope), (upstream, slope * multiple)]
        for order in (given, given[::-1]):
            value = loss(pred, *rest)
            for arrives, expected in order:
                (gradient,) = torch.autograd.grad(value, pred, arrives, retain_graph=True)
                worst = max(worst, error(gradient, expected))
        pred.requires_grad_(False)
    return at_most(2 * LIMITS[dtype], worst)  # rounded twice


def a_device_that_is_not_current() -> str:
    """The losses on the second GPU, while the first is current, are those on the first."""
    if torch.cuda.device_count() < 2:
        raise NotRunError("needs two GPUs")
    worst, step, box = 0.0, inputs(), boxes()
    for make, arguments, options in (
        (lambda: losses.GHMC(BINS, 0.75), step, {}),
        (lambda: losses.GHMR(momentum=0.7), box, {}),
        (losses.FocalLoss, step, {"avg_factor": 7.0}),
    ):
        here, there = (
            gradient_of(make().to(device), *(tensor.to(device) for tensor in arguments), **options)
            for device in ("cuda:0", "cuda:1")
        )
        worst = max(worst, *(error(found, expected) for found, expected in zip(there, here, strict=True)))
    return at_most(1e-6, worst)


def modules_are_mmdets(name: str) -> str:
    """20 steps with momentum of our module and of mmdet's on the device: value, gradient and average."""
    need_mmdet()
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


def statistics_are_the_operators() -> str:
    """The factors and the moving average of the kernel, and of PyTorch's operators on the same device, to the bit."""
    if not CUDA:
        raise NotRunError
    triton, worst = ops.TRITON, 0.0
    every: list[dict[str, Any]] = [{}, {"bias_correction": True, "smoothing": 3.0}, {"normalizer": "bins"}]
    every.append({"smoothing": "positives"})
    for options, reduction, total_L in product(every, ("mean", "sum"), (None, torch.rand(5, device=DEVICE) * 1e6)):
        modules = [losses.GHMC(BINS, 0.75, **options).to(DEVICE) for _ in range(2)]
        positives = torch.tensor(217.0, device=DEVICE) if options.get("smoothing") == "positives" else None
        for _ in range(3):
            count_LK = torch.randint(-(2**26), 2**26, (5, BINS), device=DEVICE).clamp(min=0)
            found = modules[0].factors(count_LK, total_L, reduction, positives)
            ops.TRITON = False
            expected = modules[1].factors(count_LK, total_L, reduction, positives)
            ops.TRITON = triton
            averages = (module.acc_sum for module in modules)
            worst = max(worst, error(found, expected), error(*averages))
    return at_most(0, worst)


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
