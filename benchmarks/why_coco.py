"""What the densities of GHM-C would hold at COCO's size: a simulation for `benchmarks/why.py`, not a training.

How many logits a level has is arithmetic: an image of 800 x 1333 pixels, padded to 800 x 1344, with strides 8 to 128,
9 anchors a position, 80 classes. How many anchors stand for an object is asked of the project's assigner, for boxes as
many and as large as COCO's. How gradient norms are distributed is not known; two extremes are taken from the digits:

- *per logit*: each logit is as likely to be in a region as one of the digits is. Too many hard ones, probably: most of
  the 80 classes are nowhere near.
- *per object*: there are as many hard negatives to a positive anchor as with the digits, and all others are easy.

Shapes: L levels, K unit regions, D draws.
"""

from typing import Any

import torch
from mmengine.registry import init_default_scope
from torch import Tensor

from benchmarks.step import coco
from ghm.registry import MODELS
from ghm.targets import Grid, Truth, assign

RARE = 10
MAPS = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
ANCHORS, CLASSES, IMAGES = 9, 80, 2  # of a position; of COCO; of a process in the published schedule
HEIGHT, WIDTH, SCALE = 800, 1333, 800 / 480  # of an input, and its pixels to one of a file
BOXES = 7.3  # of an image: 860,001 in 117,266
SIDES = [(8.0, 32.0, 0.41), (32.0, 96.0, 0.34), (96.0, 400.0, 0.25)]  # pixels of a file, and the share of such boxes
DRAWS = 200
EXTREMES = ("per logit", "per object")
SIZES = [2.0**power for power in range(-6, 8)]  # images of a step


def positives(images: int = 64) -> Tensor:
    """The mean number of positive anchors of an image on each level. [L]"""
    init_default_scope("mmdet")
    cfg, generator = coco("fl_sl1", "fp32"), torch.Generator().manual_seed(0)
    head: Any = MODELS.build(dict(cfg.model.bbox_head.to_dict(), train_cfg=cfg.model.train_cfg.to_dict()))
    grid = Grid.of(head.prior_generator, head.bbox_coder, MAPS)
    sizes, total_L = [ANCHORS * height * width for height, width in MAPS], torch.zeros(len(MAPS))
    for _ in range(images):
        truth = _truth(generator)
        (_, _, _, box_weight_N4), _ = assign(truth, grid, sizes, head.assigner, CLASSES, decoded=False)
        total_L += torch.stack([level[:, 0].sum() for level in box_weight_N4.split(sizes)])
    return total_L / images


def _truth(generator: torch.Generator) -> Truth:
    """The boxes of an image: sides spread evenly over the logarithm in each of COCO's three sizes."""
    number = max(1, int(torch.poisson(torch.tensor(BOXES), generator=generator)))
    low_S, high_S, share_S = torch.tensor(SIDES).unbind(1)
    size_G = torch.multinomial(share_S, number, replacement=True, generator=generator)
    side_G = low_S[size_G] * (high_S / low_S)[size_G] ** torch.rand(number, generator=generator)
    root_G = torch.exp(0.25 * torch.randn(number, generator=generator))  # of height to width
    inside_2 = torch.tensor([WIDTH, HEIGHT])
    size_G2 = torch.minimum(SCALE * side_G[:, None] * torch.stack([1 / root_G, root_G], 1), 0.98 * inside_2)
    corner_G2 = torch.rand(number, 2, generator=generator) * (inside_2 - size_G2)
    box_1G4 = torch.cat([corner_G2, corner_G2 + size_G2], 1)[None]
    return Truth(box_1G4, torch.zeros(1, number, dtype=torch.int64), torch.tensor([[HEIGHT, 1344]]))


def expected(logit_L: Tensor, positive_L: Tensor, histogram: dict[str, list[float]], extreme: str) -> Tensor:
    """The number of examples to expect in each region. [L, K]

    Args:
        histogram: counts of `positive` and `negative` logits of the digits by region.
    """
    positive_K, negative_K = (torch.tensor(histogram[sign]).double() for sign in ("positive", "negative"))
    hit_LK = positive_L[:, None] * positive_K / positive_K.sum()
    missed_L1 = (logit_L - positive_L)[:, None]
    if extreme == "per logit":
        return hit_LK + missed_L1 * negative_K / negative_K.sum()
    hard_LK = positive_L[:, None] * negative_K / positive_K.sum()
    hard_LK[:, :1] = 0
    hard_LK[:, :1] = missed_L1 - hard_LK.sum(1, keepdim=True)
    return hit_LK + hard_LK


def weighed(count_DLK: Tensor, norm_K: Tensor, smoothing: float) -> Tensor:
    """What each region adds to the sum of gradient norms of its level, without a moving average. [D, L, K]"""
    regions_DL1 = (count_DLK > 0).sum(2, keepdim=True).clamp(min=1)
    return norm_K * count_DLK / ((count_DLK + smoothing) * regions_DL1).clamp(min=1e-30)


def judged(mean_LK: Tensor, norm_K: Tensor, smoothings: dict[str, float]) -> dict[str, Any]:
    """What of the gradient is from rare regions, and what pseudo-counts leave of it; by level, and of all levels."""
    generator = torch.Generator().manual_seed(0)
    count_DLK = torch.poisson(mean_LK.expand(DRAWS, -1, -1), generator=generator)
    rare_DLK, published_DLK = (count_DLK > 0) & (count_DLK < RARE), weighed(count_DLK, norm_K, 0.0)
    hard_DLK, occupied_DL = count_DLK[..., 1:], (count_DLK > 0).sum(2)

    def share(part_DLK: Tensor) -> list[float]:
        """Of what the published loss has: each level's, and that of all."""
        one_L, all_L = part_DLK.sum((0, 2)), published_DLK.sum((0, 2))
        return [*(one_L / all_L).tolist(), float(one_L.sum() / all_L.sum())]

    return {
        "median of hard regions": hard_DLK.median(0).values.median(1).values.tolist(),
        "rare of occupied": (rare_DLK.sum((0, 2)) / occupied_DL.sum(0)).tolist(),
        "rare": share(published_DLK.where(rare_DLK, 0.0)),
        **{name: share(weighed(count_DLK, norm_K, smoothing)) for name, smoothing in smoothings.items()},
    }


def simulated(probes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """COCO's step of two images, steps of other sizes, and the digits' own step as a test.

    Args:
        probes: loss that a network was trained with -> what the digits showed, see `why_measures.of_regions`.
    """
    positive_L = positives().double()
    logit_L = torch.tensor([ANCHORS * CLASSES * height * width for height, width in MAPS]).double()
    number = IMAGES * float(positive_L.sum())
    result: dict[str, Any] = {
        "logits of an image": logit_L.tolist(),
        "positives of an image": positive_L.tolist(),
        "images": SIZES,
        "logits": [size * float(logit_L.sum()) for size in SIZES],
    }
    for name, probe in probes.items():
        histogram, norm_K = probe["histogram"], torch.tensor(probe["histogram"]["norm"]).double()
        own_L, own_positive_L = (torch.tensor(probe[each]).double() for each in ("logits", "positives of levels"))
        of = result[name] = {"digits": judged(expected(own_L, own_positive_L, histogram, "per logit"), norm_K, {})}
        for extreme in EXTREMES:
            means = [expected(size * logit_L, size * positive_L, histogram, extreme) for size in SIZES]
            step = means[SIZES.index(IMAGES)]
            of[extreme] = judged(step, norm_K, {"100": 100.0, "positives": number})
            of[extreme]["rare by images"] = [judged(mean_LK, norm_K, {})["rare"][-1] for mean_LK in means]
    return result
