"""Gradient density by unit regions: the definition that GHM-C and GHM-R share, as functions of tensors.

Source: B. Li, Y. Liu, X. Wang, "Gradient Harmonized Single-stage Detector", AAAI 2019, arXiv 1811.05181.
Shapes: K unit regions (the paper's M, mmdet's `bins`), E = K + 1 edges, L populations. Tensors without a suffix hold
one value an example in any shape, the same for all of them. Statistics are float32, counts int64.

Nothing here waits for the device or loops over regions.
"""

import torch
from torch import Tensor


def classification_gradient_norm(logit: Tensor, target: Tensor) -> Tensor:
    """Equation 3: g = |p - p*| with p = sigmoid(logit), the size of the derivative of cross entropy by the logit."""
    return (logit.sigmoid() - target).abs()


def regression_gradient_norm(difference: Tensor, *, mu: float) -> Tensor:
    """Section "GHM-R Loss": gr = |d / sqrt(d^2 + mu^2)|, the size of the derivative of ASL1 by d."""
    return (difference / (difference * difference + mu * mu).sqrt()).abs()


def region_edges(bins: int, *, end: float, device: torch.device | None = None) -> Tensor:
    """Where the unit regions begin and end: k / bins, but `end` for the last, so that a norm of 1 is inside. [E]"""
    # In float64: CUDA divides by multiplying with 1 / bins, which in float32 is an ulp off for every other edge.
    edge_E = (torch.arange(bins + 1, dtype=torch.float64, device=device) / bins).float()
    edge_E[-1:].fill_(end)  # an assignment by index would wait for the device
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
    count = torch.zeros(bins + 1, dtype=torch.int64, device=index.device)
    # Not bincount: it waits for the device to learn the largest index. A float32 sum of ones stops at 2^24.
    count.scatter_add_(0, index.flatten().long(), count.new_ones(()).expand(index.numel()))
    return count[:bins]


def moving_averages(average_K: Tensor, count_LK: Tensor, *, momentum: float) -> list[Tensor]:
    """Section "EMA": S_j = momentum * S_j + (1 - momentum) * R_j, by each population in turn. L of [K]

    Deviation: the paper moves every region; here, as in the reference code and in mmdet, an empty one keeps its S_j.
    """
    occupied_LK, gain_LK = count_LK > 0, (1 - momentum) * count_LK
    moved = [average_K]
    for occupied_K, gain_K in zip(occupied_LK.unbind(), gain_LK.unbind(), strict=True):
        later_K = (momentum * moved[-1]).add_(gain_K)  # addcmul would round once
        moved.append(torch.where(occupied_K, later_K, moved[-1]))
    return moved[1:]


def region_weights(
    density_LK: Tensor,
    count_LK: Tensor,
    total_L: Tensor,
    *,
    normalizer: str = "valid_bins",
    smoothing: float | Tensor = 0.0,
) -> Tensor:
    """Equation 7 with unit regions: beta = total / GD, GD = (S_j + smoothing) * M. 0 for an empty region. [..., K]

    Deviation: the paper multiplies by all M regions and knows no smoothing; the defaults, as the reference code and
    mmdet, multiply by the occupied ones.

    Args:
        density_LK: what stands for the number of examples in each region: counts, or their moving average.
        count_LK: the counts of this step, which say what is occupied.
        total_L: N of each population.
        normalizer: with `valid_bins` M is the number of occupied regions of the population, with `bins` of all.
        smoothing: examples added to every occupied region, 0 or more; a number or [].
    """
    occupied_LK = count_LK > 0
    regions = occupied_LK.sum(-1, keepdim=True) if normalizer == "valid_bins" else count_LK.shape[-1]
    weight_LK = total_L[..., None] / ((density_LK.float() + smoothing) * regions)
    return torch.where(occupied_LK, weight_LK, 0.0)
