"""The slow oracle: GHM-C and GHM-R as the paper writes them, in float64, one example at a time, without torch.

Source: B. Li, Y. Liu, X. Wang, "Gradient Harmonized Single-stage Detector", AAAI 2019, arXiv 1811.05181. Numbers of
equations are given up to (8); what follows it is cited by section.

Two choices come from the authors' code (libuyu/GHM_Detection) and not from the paper:

- `occupied_only` (default): the density of a region is S_j times the number of regions that hold an example. The paper
  multiplies by M, all regions, so that its loss is smaller by occupied / M.
- an empty region keeps its moving average S_j, where the paper's recursion lets it decay. Not an argument: the
  published results come from the code.

Names: N examples, M unit regions, p the probability, p_star the target, d = prediction - target.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Outcome:
    """Of one call: the mean loss, its derivative by every input, beta, and S_j (None without momentum)."""

    loss: float
    gradient: np.ndarray
    beta: np.ndarray
    average: list[float] | None


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def cross_entropy(x: float, p_star: float) -> float:
    """Equation 1 by the logit: -p* log p - (1 - p*) log(1 - p), without cancellation for large |x|."""
    return max(x, 0.0) - x * p_star + math.log1p(math.exp(-abs(x)))


def exact_density(norms: list[float], g: float, *, epsilon: float) -> float:
    """Equations 4 to 6: the number of examples within epsilon / 2 of g, divided by the length inside [0, 1]."""
    low, high = g - epsilon / 2, g + epsilon / 2
    return sum(low <= g_k < high for g_k in norms) / (min(high, 1.0) - max(low, 0.0))


def unit_region(g: float, regions: int) -> int | None:
    """Section "Unit Region Approximation": the j with j / M <= g < (j + 1) / M. The last one holds g = 1 too.

    p rounds to 1 for a confident logit, and |gr| to 1 for a large d, so g = 1 occurs. NaN is in no region.
    """
    for j in range(regions):
        if j / regions <= g and (g < (j + 1) / regions or j == regions - 1):
            return j
    return None


def harmonising_parameters(
    norms: list[float],
    valid: list[bool],
    total: float,
    *,
    regions: int,
    momentum: float = 0.0,
    average: list[float] | None = None,
    occupied_only: bool = True,
    smoothing: float = 0.0,
) -> tuple[list[float], list[float] | None]:
    """beta_i = total / GD(g_i), equation 7, with GD by unit regions and, with momentum, by section "EMA".

    `smoothing` is not the paper's: examples added to the count of every region that GD is asked of.
    """
    count = [0] * regions
    index = [unit_region(g, regions) if ok else None for g, ok in zip(norms, valid, strict=True)]
    for j in index:
        if j is not None:
            count[j] += 1
    density: list[float] = [float(n) for n in count]
    if momentum > 0:
        average = [0.0] * regions if average is None else average
        density = [momentum * s + (1 - momentum) * n if n > 0 else s for s, n in zip(average, count, strict=True)]
    factor = sum(n > 0 for n in count) if occupied_only else regions
    beta = [0.0 if j is None else total / ((density[j] + smoothing) * factor) for j in index]
    return beta, density if momentum > 0 else None


def ghm_c(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray, **options: Any) -> Outcome:
    """Equation 8, sum_i beta_i L_CE(p_i, p*_i) / N, and equation 2 for the derivative; beta is held constant.

    `options` here and in `ghm_r` are those of `harmonising_parameters`.
    """
    x, p_star, ok = _flat(logits), _flat(targets), [w > 0 for w in _flat(weights)]
    slope = [sigmoid(x_i) - t_i for x_i, t_i in zip(x, p_star, strict=True)]
    loss = [cross_entropy(x_i, t_i) for x_i, t_i in zip(x, p_star, strict=True)]
    return _outcome(loss, slope, ok, float(sum(ok)), np.shape(logits), options)


def ghm_r(predictions: np.ndarray, targets: np.ndarray, weights: np.ndarray, *, mu: float, **options: Any) -> Outcome:
    """Section "GHM-R Loss": sum_i beta_i ASL1(d_i) / N and its derivative; N is the sum of weights, as in the code."""
    differences = [a - b for a, b in zip(_flat(predictions), _flat(targets), strict=True)]
    slope = [d / math.sqrt(d * d + mu * mu) for d in differences]
    loss = [math.sqrt(d * d + mu * mu) - mu for d in differences]
    weight = _flat(weights)
    return _outcome(loss, slope, [w > 0 for w in weight], sum(weight), np.shape(predictions), options)


def _flat(values: np.ndarray) -> list[float]:
    return [float(v) for v in np.asarray(values, dtype=np.float64).reshape(-1)]


def _outcome(
    loss: list[float], slope: list[float], ok: list[bool], total: float, shape: tuple[int, ...], options: dict[str, Any]
) -> Outcome:
    """The mean of losses whose gradient norm is |slope|, weighed by beta."""
    total = max(total, 1.0)
    beta, average = harmonising_parameters([abs(s) for s in slope], ok, total, **options)
    value = sum(b * v for b, v in zip(beta, loss, strict=True)) / total
    gradient = [b * s / total for b, s in zip(beta, slope, strict=True)]
    return Outcome(value, np.array(gradient).reshape(shape), np.array(beta).reshape(shape), average)
