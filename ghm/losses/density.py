"""Gradient density by unit regions: the tensor functions behind GHM-C and GHM-R.

Source: B. Li, Y. Liu, X. Wang, "Gradient Harmonized Single-stage Detector", AAAI 2019, arXiv 1811.05181.
Shapes: K unit regions (the paper's M, mmdet's `bins`), E = K + 1 edges. Tensors without a suffix hold one value an
example in any shape, the same for all of them. Statistics are float32, counts int64.

Nothing here waits for the device or loops over regions.
"""

import torch
from torch import Tensor
from torch.nn import functional

REDUCTIONS = ("none", "mean", "sum")


def classification_gradient_norm(logit: Tensor, target: Tensor) -> Tensor:
    """Equation 3: g = |p - p*| with p = sigmoid(logit), the size of the derivative of cross entropy by the logit."""
    return (logit.sigmoid() - target).abs()


def regression_gradient_norm(difference: Tensor, *, mu: float) -> Tensor:
    """Section "GHM-R Loss": gr = |d / sqrt(d^2 + mu^2)|, the size of the derivative of ASL1 by d."""
    return (difference / (difference * difference + mu * mu).sqrt()).abs()


def region_edges(bins: int, *, end: float) -> Tensor:
    """Where the unit regions begin and end: k / bins, but `end` for the last, so that a norm of 1 is inside. [E]

    Raises:
        ValueError: `bins` is no whole number, or less than 1.
    """
    if not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins must be a whole number, 1 or greater, got {bins!r}")
    edge_E = torch.arange(bins + 1).float() / bins
    edge_E[-1] = end
    return edge_E


def region_index(norm: Tensor, valid: Tensor, *, edge_E: Tensor) -> Tensor:
    """The k with edge_k <= norm < edge_(k+1); K where the example is in no region: not valid, NaN, or past the end.

    Comparing with the edges, and not rounding `norm * bins`, puts every example in the region that mmdet puts it in.
    """
    # The inner edges count how many regions lie below; NaN sorts behind all of them. bucketize warns of strides.
    index = torch.bucketize(norm.contiguous(), edge_E[1:], right=True)
    return torch.where(valid, index, len(edge_E) - 1)


def region_counts(index: Tensor, *, bins: int) -> Tensor:
    """R_j of the section "Unit Region Approximation": the number of examples in each region. int64, [K]"""
    count = index.new_zeros(bins + 1)
    # Not bincount: it waits for the device to learn the largest index. A float32 sum of ones stops at 2^24.
    count.scatter_add_(0, index.flatten(), index.new_ones(()).expand(index.numel()))
    return count[:bins]


def moving_average(average_K: Tensor, count_K: Tensor, *, momentum: float) -> Tensor:
    """Section "EMA": S_j = momentum * S_j + (1 - momentum) * R_j.

    Deviation: the paper moves every region; here, as in the reference code and in mmdet, an empty one keeps its S_j.
    """
    moved_K = momentum * average_K + (1 - momentum) * count_K
    return torch.where(count_K > 0, moved_K, average_K)


def region_weights(density_K: Tensor, count_K: Tensor, total: Tensor) -> Tensor:
    """Equation 7 with unit regions: beta = total / GD, and GD = S_j * (number of regions). 0 for an empty region. [K]

    Deviation: the paper multiplies by all M regions; here, as in the reference code and in mmdet, by the occupied ones.
    """
    occupied_K = count_K > 0
    weight_K = total / (density_K * occupied_K.sum())
    return torch.where(occupied_K, weight_K, 0.0)


def harmonise(
    norm: Tensor, valid: Tensor, total: Tensor, average_K: Tensor | None, *, edge_E: Tensor, momentum: float
) -> tuple[Tensor, Tensor]:
    """Weigh every example by the density of its unit region.

    Args:
        norm: gradient norms.
        valid: bool, False for what is ignored.
        total: what the loss will be divided by, [].
        average_K: moving average of the counts so far, or None to use the counts alone.
        edge_E: see `region_edges`.
        momentum: of the moving average.

    Returns:
        The weight of every example, 0 outside all regions, and what stood for the density in each region, [K].
    """
    index = region_index(norm, valid, edge_E=edge_E)
    count_K = region_counts(index, bins=len(edge_E) - 1)
    density_K = count_K if average_K is None else moving_average(average_K, count_K, momentum=momentum)
    weight_K = region_weights(density_K, count_K, total)
    return functional.pad(weight_K, (0, 1))[index], density_K


def reduce_loss(loss: Tensor, weight: Tensor, total: Tensor, *, reduction: str) -> Tensor:
    """Weigh, then `none`: every example; `mean`: their sum / total (equation 8), 0 when there are none; `sum`.

    Deviation: mmdet adds 1.2e-7 to `total`, which is never less than 1, and refuses `sum`.

    Raises:
        ValueError: another reduction.
    """
    check_reduction(reduction)
    weighted = loss * weight
    if reduction == "none":
        return weighted
    return weighted.sum() / total if reduction == "mean" else weighted.sum()


def check_reduction(reduction: str) -> None:
    """Raise ValueError for a reduction that `reduce_loss` does not know."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def check_momentum(momentum: float) -> None:
    """Raise ValueError for a momentum outside [0, 1)."""
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum!r}")
