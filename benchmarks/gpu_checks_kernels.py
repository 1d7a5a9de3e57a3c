"""The checks of `benchmarks.gpu_checks` of the Triton kernels, and what all of them share.

Each is a function that returns a figure, or raises. Shapes: N examples, C classes or coordinates, L populations of
`sizes` rows, K unit regions.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from ghm.losses import density, kernels, slots  # noqa: E402

DEVICE = "cuda" if CUDA else "cpu"
ROWS, CLASSES, BINS, MU = (100_000, 80, 30, 0.02) if CUDA else (600, 5, 30, 0.02)
SIZES = [ROWS * 3 // 4, ROWS // 5, 0, ROWS - ROWS * 3 // 4 - ROWS // 5]
# By how much a gradient may miss float64: it is rounded once.
LIMITS = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


class NotRunError(Exception):
    """A check that has no meaning without one."""


def need_mmdet() -> None:
    """Raise NotRunError without it."""
    if not importlib.util.find_spec("mmdet"):
        raise NotRunError("mmdet is not installed")


def inputs(
    dtype: torch.dtype = torch.float32, classes: int = CLASSES, rows: int = ROWS, device: str = DEVICE
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and weights, fresh at every call. The first rows are sure negatives, counted as a whole."""
    logit = torch.randn(rows, classes, device=device) * 3 - 3
    logit[: rows // 4] -= 9
    label = torch.randint(-1, 3 * classes, (rows,), device=device).clamp(max=classes)
    label[: rows // 5] = classes
    return logit.to(dtype), label, (torch.rand(rows, device=device) > 0.05).float()


def boxes(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions, targets and weights of boxes, fresh at every call."""
    pred, target = ((torch.randn(ROWS, 4, device=DEVICE) * 0.05).to(dtype) for _ in range(2))
    return pred, target, (torch.rand(ROWS, 4, device=DEVICE) > 0.5).float()


def error(found: Any, expected: Any) -> float:
    """Norm of the difference over the norm of what is expected, both tensors."""
    expected = expected.detach().double()
    difference = found.detach().double().to(expected.device) - expected
    return float(difference.norm() / expected.norm().clamp(min=1e-30))


def at_most(limit: float, value: float) -> str:
    """The figure, or an AssertionError."""
    if not value <= limit:  # NaN too
        raise AssertionError(f"{value:.2e} > {limit:.0e}")
    return f"{value:.1e}"


def regions(norm: Tensor, valid: Tensor, sizes: list[int], bins: int) -> tuple[Tensor, Tensor]:
    """The counts of each population, [L, K], and the region of each norm, K where it has none, by the definition."""
    edge_E = density.region_edges(bins, end=slots.CLASSIFICATION_END, device=norm.device)
    index = density.region_index(norm, valid & (norm == norm), edge_E=edge_E)
    return torch.stack([density.region_counts(part, bins=bins) for part in index.split(sizes)]), index


def regions_are_exact() -> str:
    """Norms on every edge and beside it: counts of the kernels, and those of PyTorch's operators on the same device."""
    if not CUDA:
        raise NotRunError
    worst = 0
    for bins in (2, 10, 11, 20, 30, 40, 49, 130):
        edge = torch.arange(1, bins, device=DEVICE, dtype=torch.float64) / bins
        steps = torch.arange(-300, 301, device=DEVICE, dtype=torch.int32)

        def beside(near: Tensor, steps: Tensor = steps) -> Tensor:
            return (near.float().view(torch.int32)[:, None] + steps).view(torch.float32).reshape(-1, 1)

        logit = beside(torch.logit(edge))
        logit = torch.cat([logit, -logit, logit, -logit])
        label = (torch.arange(len(logit), device=DEVICE) >= len(logit) // 2).long()  # 0 is positive, 1 background
        weight, sizes = torch.ones(len(logit), device=DEVICE), [len(logit)]
        norm = density.classification_gradient_norm(logit, 1.0 - label[:, None].float())
        expected, _ = regions(norm, weight[:, None] > 0, sizes, bins)
        found, _ = kernels.ghm_c_count(logit, label, weight, sizes, bins)
        worst = max(worst, int((found - expected).abs().sum()))
        pred = beside(MU * edge / (1 - edge * edge).sqrt())
        target, weight, sizes = torch.zeros_like(pred), torch.ones_like(pred), [len(pred)]
        expected, _ = regions(density.regression_gradient_norm(pred, mu=MU), weight > 0, sizes, bins)
        found, _ = kernels.ghm_r_count(pred, target, weight, sizes, bins, MU)
        worst = max(worst, int((found - expected).abs().sum()))
    return at_most(0, worst)


def in_float64(pred: Tensor, loss: Callable[[Tensor], Tensor], sizes: list[int]) -> tuple[Tensor, Tensor]:
    """The sum of the loss over each population, and its derivative."""
    wide = pred.double().requires_grad_()
    loss_L = torch.stack([part.sum() for part in loss(wide).split(sizes)])
    return loss_L.detach(), torch.autograd.grad(loss_L.sum(), wide)[0]


def looked_up(index: Tensor, sizes: list[int], factor_LK: Tensor) -> Tensor:
    """The factor of each example, 0 without a region."""
    padded = functional.pad(factor_LK.double(), (0, 1))
    return torch.cat([own_K[part] for own_K, part in zip(padded, index.split(sizes), strict=True)])


def passes_agree(name: str, arguments: tuple, expected: tuple[Tensor, Tensor]) -> float:
    """How far the one pass of the kernels for loss and gradient is from float64, and their two from that."""
    found = getattr(kernels, f"{name}_loss_and_gradient")(*arguments)
    alone = [getattr(kernels, f"{name}_{what}")(*arguments) for what in ("loss", "gradient")]
    limit = LIMITS[arguments[0].dtype]
    for loss, gradient in (found, alone):
        at_most(1e-6, error(loss, expected[0]))
        at_most(limit, error(gradient, expected[1]))
    return error(found[1], expected[1])


def ghm_c_is_float64(dtype: torch.dtype, classes: int = CLASSES, bins: int = BINS) -> str:
    """Counts, loss and gradient."""
    rows = max(40, ROWS * CLASSES // classes)
    sizes = [rows * 3 // 4, rows // 5, 0, rows - rows * 3 // 4 - rows // 5]
    logit, label, weight = inputs(dtype, classes, rows)
    factor_LK = torch.rand(len(sizes), bins, device=DEVICE)
    target = (label[:, None] == torch.arange(classes, device=DEVICE)).double()
    norm = density.classification_gradient_norm(logit.float(), target.float())
    expected_LK, index = regions(norm, weight[:, None] > 0, sizes, bins)
    count_LK, slot = kernels.ghm_c_count(logit, label, weight, sizes, bins)
    at_most(0 if CUDA else 1e-3, error(count_LK, expected_LK))  # NumPy's exponential is not PyTorch's

    def loss(wide: Tensor) -> Tensor:
        entropy = functional.binary_cross_entropy_with_logits(wide, target, reduction="none")
        return entropy * looked_up(index, sizes, factor_LK)

    arguments = (logit, label, weight, slot, sizes, factor_LK)
    return f"{passes_agree('ghm_c', arguments, in_float64(logit, loss, sizes)):.1e}"


def ghm_r_is_float64(dtype: torch.dtype, bins: int = 10) -> str:
    """Counts, loss and gradient."""
    pred, target, weight = boxes(dtype)
    factor_LK = torch.rand(len(SIZES), bins, device=DEVICE)
    norm = density.regression_gradient_norm(pred.float() - target.float(), mu=MU)
    expected_LK, index = regions(norm, weight > 0, SIZES, bins)
    count_LK, length = kernels.ghm_r_count(pred, target, weight, SIZES, bins, MU)
    at_most(0 if CUDA else 1e-3, error(count_LK, expected_LK))  # on a CPU PyTorch's root may be an ulp off

    def loss(wide: Tensor) -> Tensor:
        asl1 = ((wide - target.double()) ** 2 + MU * MU).sqrt() - MU
        return asl1 * looked_up(index, SIZES, factor_LK)

    arguments = (pred, target, weight, length, SIZES, factor_LK, MU)
    return f"{passes_agree('ghm_r', arguments, in_float64(pred, loss, SIZES)):.1e}"


def focal_is_float64(dtype: torch.dtype) -> str:
    """Loss and gradient, at three gammas."""
    logit, label, weight = inputs(dtype)
    target = (label[:, None] == torch.arange(CLASSES, device=DEVICE)).double()
    factor, worst = torch.tensor(0.3, device=DEVICE), 0.0
    for gamma in (2.0, 1.5, 0.0):

        def loss(wide: Tensor, gamma: float = gamma) -> Tensor:
            entropy = functional.binary_cross_entropy_with_logits(wide, target, reduction="none")
            balance = 0.25 * target + 0.75 * (1 - target)
            norm = torch.where(target == 1, torch.sigmoid(-wide), torch.sigmoid(wide))
            return entropy * norm**gamma * balance * weight.double()[:, None] * factor.double()

        expected = in_float64(logit, loss, [len(logit)])
        worst = max(worst, passes_agree("focal", (logit, label, weight, gamma, 0.25, factor), expected))
    return f"{worst:.1e}"


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
