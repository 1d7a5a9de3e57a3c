"""What the gradients and weights of losses have to say: the measures of `benchmarks/why.py`, as functions of tensors.

Shapes: N anchors of a batch, C classes, L levels, K unit regions, E = K + 1, T steps or
batches, W weights of the network.
"""

from typing import Any

import torch
from torch import Tensor

from ghm.head import Examples
from ghm.losses.density import classification_gradient_norm, moving_averages, region_counts, region_edges, region_index

BINS, MOMENTUM = 30, 0.75  # as published
RARE = 10  # examples: a region with fewer is rare


def effective_number(size_N: Tensor) -> float:
    """How many examples of equal size would be as uneven a sum: (sum w)^2 / sum w^2; n for n equal ones, 0 for none."""
    size_N = size_N.double()
    return float(size_N.sum() ** 2 / (size_N**2).sum()) if bool(size_N.any()) else 0.0


def share(size_N: Tensor, chosen_N: Tensor) -> float:
    """The part of the sum of `size_N` that comes from those that are chosen; 0 where the sum is."""
    total = float(size_N.double().sum())
    return float(size_N[chosen_N].double().sum()) / total if total else 0.0


def signal(sum_W: Tensor, squares: float, number: int) -> float:
    """The share of a gradient's expected square that is the square of its expectation, without bias.

    Args:
        sum_W: of `number` independent gradients.
        squares: sum of their squared norms.
    """
    mean_square = squares / number
    of_mean = float((sum_W.double() / number).square().sum())
    return (number * of_mean - mean_square) / (number - 1) / mean_square


def weights(average_LK: Tensor, count_LK: Tensor, smoothing: float | Tensor = 0.0) -> Tensor:
    """What an example of a region is multiplied with in the mean: 1 / ((S_j + s) M'), 0 in an empty region. [..., K]"""
    occupied_LK = count_LK > 0
    weight_LK = 1 / ((average_LK + smoothing) * occupied_LK.sum(-1, keepdim=True)).clamp(min=1e-30)
    return weight_LK.where(occupied_LK, 0.0)


def variation(value_TLK: Tensor, count_TLK: Tensor) -> Tensor:
    """Standard deviation over mean of each region over the batches that occupy it; NaN where under half do. [LK]"""
    held_TLK = count_TLK > 0
    value_TLK, number_LK = value_TLK.double().where(held_TLK, 0.0), held_TLK.sum(0)
    mean_LK = value_TLK.sum(0) / number_LK
    spread_LK = (value_TLK - mean_LK).where(held_TLK, 0.0).square().sum(0) / (number_LK - 1)
    enough_LK = (2 * number_LK >= len(count_TLK)) & (number_LK > 1)
    return (spread_LK.sqrt() / mean_LK).where(enough_LK, torch.nan)


class Regions:
    """The unit regions of the logits of a batch."""

    def __init__(self, examples: Examples) -> None:
        logit_NC, classes = examples.logit_NC.detach(), examples.logit_NC.shape[1]
        self.positive_NC = examples.label_N[:, None] == torch.arange(classes)
        self.norm_NC = classification_gradient_norm(logit_NC, self.positive_NC.float())
        valid_N1 = (examples.label_weight_N > 0)[:, None]
        edge_E = region_edges(BINS, end=1 + 1e-6)
        self.index_NC = region_index(self.norm_NC, valid_N1.expand_as(self.norm_NC), edge_E=edge_E)
        self.sizes = examples.sizes
        self.positives = float((self.positive_NC & valid_N1).sum())

    def counts(self, chosen_NC: Tensor | None = None) -> Tensor:
        """Of all, or of those that are chosen. [L, K]"""
        index_NC = self.index_NC if chosen_NC is None else self.index_NC.where(chosen_NC, BINS)
        return torch.stack([region_counts(part, bins=BINS) for part in index_NC.split(self.sizes)])

    def score(self) -> Tensor:
        """The sum of all probabilities; as many as there are positives where a network is calibrated."""
        return (self.norm_NC - self.positive_NC.float()).abs()[self.index_NC < BINS].sum()

    def rare(self) -> Tensor:
        """Which logits share their region with few. [N, C]"""
        rare_LE = torch.nn.functional.pad(self.counts() < RARE, (0, 1))
        parts = zip(rare_LE, self.index_NC.split(self.sizes), strict=True)
        return torch.cat([rare_E[index_NC] for rare_E, index_NC in parts])

    def norms(self) -> Tensor:
        """The sum of the gradient norms of each region, of all levels. [K]"""
        total = torch.zeros(BINS + 1).index_add_(0, self.index_NC.flatten(), self.norm_NC.flatten())
        return total[:-1]


def of_counts(count_TLK: Tensor, average_TLK: Tensor) -> dict[str, Any]:
    """How many examples regions hold and what density they are given for that."""
    occupied_TLK, quantiles = count_TLK > 0, torch.tensor([0.05, 0.5, 0.95])
    ratio_TLK = (average_TLK / count_TLK.clamp(min=1)).where(occupied_TLK, torch.nan)
    total_TL = (weights(average_TLK, count_TLK) * count_TLK).sum(2)
    rare_TLK = occupied_TLK & (count_TLK < RARE)
    return {
        "count": count_TLK.float().quantile(quantiles, dim=0).permute(1, 2, 0).tolist(),  # [L, K, 3]
        "logits": count_TLK.sum(2).float().median(0).values.tolist(),
        "occupied": occupied_TLK.sum(2).float().mean(0).tolist(),
        "rare of occupied": (rare_TLK.sum((0, 2)) / occupied_TLK.sum((0, 2))).tolist(),
        "rare of occupied, all": float(rare_TLK.sum() / occupied_TLK.sum()),
        "average times own count": [
            {"first": float(level_TK[:, 0].nanmedian()), "others": float(level_TK[:, 1:].nanmedian())}
            for level_TK in ratio_TLK.unbind(1)
        ],
        "total weight": total_TL.float().median(0).values.tolist(),
    }


def of_regions(seen: list[Regions], average_K: Tensor) -> dict[str, Any]:
    """How counts and weights of each region vary over batches, and which norms there are."""
    count_TLK = torch.stack([regions.counts() for regions in seen])
    averages: list[Tensor] = []
    for count_LK in count_TLK:
        averages += moving_averages(averages[-1] if averages else average_K, count_LK, momentum=MOMENTUM)
    average_TLK = torch.stack(averages).view(count_TLK.shape)
    positive_T11 = torch.tensor([regions.positives for regions in seen])[:, None, None]
    varied = {
        "count": count_TLK,
        "GHM-C without average": weights(count_TLK, count_TLK),
        "GHM-C": weights(average_TLK, count_TLK),
        "GHM-C + 100": weights(average_TLK, count_TLK, 100.0),
        "GHM-C + positives": weights(average_TLK, count_TLK, positive_T11),
    }
    mean_LK = count_TLK.sum(0) / (count_TLK > 0).sum(0)
    columns = {"mean count": mean_LK, **{name: variation(value, count_TLK) for name, value in varied.items()}}
    kept_LK = ~columns["count"].isnan()
    positive_LK = torch.stack([regions.counts(regions.positive_NC) for regions in seen]).sum(0)
    positive_K = positive_LK.sum(0)
    every_K = count_TLK.sum((0, 1))
    norm_K = sum(regions.norms() for regions in seen)
    return {
        "variation": {name: value[kept_LK].tolist() for name, value in columns.items()},
        "score per positive": float(sum(regions.score() for regions in seen) / positive_K.sum()),
        "level": kept_LK.nonzero()[:, 0].tolist(),
        "positives": float(positive_T11.mean()),
        "positives of levels": (positive_LK.sum(1) / len(seen)).tolist(),
        "histogram": {
            "positive": positive_K.tolist(),
            "negative": (every_K - positive_K).tolist(),
            "norm": (norm_K / every_K.clamp(min=1)).tolist(),
        },
        "logits": count_TLK.sum(2).float().mean(0).tolist(),
    }


def cosine(one_W: Tensor, other_W: Tensor) -> float:
    return float(torch.dot(one_W, other_W) / (one_W.norm() * other_W.norm()))
