"""Anchors and an image scale that fit the boxes of a data set better, found by search, and the words about them.

An image of twice the side takes four times as long, which no number of anchors does. So image scales are tried from
the present one up to the size of the images themselves. At the first where some setting leaves less than WANTED of the
boxes without a positive anchor, the setting that changes fewest values is taken, and of these the one with the fewest
anchors. Where none does, it is one that leaves as few as any, to one in a hundred. Tried are, with what is set now: 3
to 5 levels, 1 to 3 scales an octave, base scales in steps of 2 ** (1 / 3), and as ratios 1 to 4 quantiles of those of
the boxes.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from ghm import data
from ghm.data import annotations
from ghm.data.annotations import Annotations
from ghm.inspection.anchors import PADDED, POSITIVE, Boxes, Setting, iou, missed, offsets, used
from ghm.params import Anchors, Params
from ghm.words import label

WARNED, WANTED = 0.10, 0.05  # share of boxes without a positive anchor: from which we warn, and below which we suggest
SEARCHED = 5_000  # boxes that settings are searched with
BASES = tuple(float(f"{2 ** (step / 3):.2g}") for step in range(-2, 10))  # 0.63, 0.79, 1, ... 8 strides
LEVELS, PER_OCTAVE, RATIOS = (3, 4, 5), (1, 2, 3), (1, 2, 3, 4)
LARGER = 2 ** (1 / 3)  # from one image scale to the next
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """How the anchors fit, and what would fit better."""

    present: Setting
    missed: float  # share of the training boxes without a positive anchor
    suggested: Setting | None  # None where the present one fits, or nothing that was tried fits better
    left: float  # share with what is suggested
    times: float  # pixels of an image with what is suggested, in those of now

    @property
    def is_bad(self) -> bool:
        return self.missed > WARNED

    def sentence(self) -> str:
        """What there is to say and to do."""
        wanted = f"anchor with an IoU of {POSITIVE} or more"
        if not self.is_bad:
            return f"The anchors fit: {percent(1 - self.missed)} of the training boxes have an {wanted}"
        text = f"{percent(self.missed)} of the training boxes have no {wanted}"
        if self.suggested is None:
            return f"{text}, and nothing that was tried leaves fewer: most of these boxes are too small"
        now, then = self.present.values(), self.suggested.values()
        changes = [f"{key} {_text(then[key])} (now {_text(now[key])})" for key in now if then[key] != now[key]]
        text += f", so they are learned badly. `make fit` sets what leaves {percent(self.left)}: {', '.join(changes)}"
        cost = f". An image then has {self.times:.2g} times the pixels, and takes about as many times as long"
        return text + cost * (self.times > 1)


def percent(share: Any) -> str:
    return f"{round(100 * share, 1):g} %"


def _text(value: object) -> str:
    return str(value) if isinstance(value, list) else label(value)


def judge(boxes: Boxes, present: Setting, largest: int | None = None) -> Fit:
    """How `present` fits, and what fits better where it leaves more than WARNED of the boxes without a positive anchor.

    Args:
        largest: longest side of an image that may be suggested; None: that of the images themselves.
    """
    share = missed(boxes, present)
    suggested = suggest(boxes, present, largest) if share > WARNED else present
    left = missed(boxes, suggested)
    if left >= share:
        return Fit(present, share, None, share, 1.0)
    pixels_now, pixels_then = (
        boxes.resized(each.image_scale).image_N2.prod(axis=1).mean() for each in (present, suggested)
    )
    return Fit(present, share, suggested, left, float(pixels_then / pixels_now))


def of_training_split(parameters: Params, largest: int | None = None) -> Fit:
    """Of the data set that the stage `data` has left.

    Raises:
        InputError: it is not there.
    """
    content = annotations.read(data.annotation_file(parameters, "train"), Annotations)
    return judge(used(content), Setting.of(parameters), largest)


def warn(parameters: Params) -> None:
    """Say in the log where the anchors do not fit."""
    fit = of_training_split(parameters)
    if fit.is_bad:
        _log.warning("warning: %s", fit.sentence())


def suggest(boxes: Boxes, present: Setting, largest: int | None = None) -> Setting:
    """What the search described above finds; the present setting where nothing is better."""
    boxes = boxes.sample(SEARCHED)
    found = [(missed(boxes, present), 0.0, present)]
    for scale in image_scales(boxes, present.image_scale, largest):
        settings = _settings(boxes.resized(scale), replace(present, image_scale=scale))
        found += [(share, _change(setting, present), setting) for share, setting in settings]
        few = [entry for entry in found if entry[0] < WANTED]
        if few:
            return min(few, key=lambda entry: (int(entry[1]), entry[2].per_image, entry[1]))[2]
    return min(found, key=lambda entry: (round(entry[0], 2), entry[2].image_scale, entry[2].per_image, entry[1]))[2]


def image_scales(boxes: Boxes, present: tuple[int, ...], largest: int | None = None) -> list[tuple[int, ...]]:
    """The present one and larger ones of its shape, up to the size of most images, in multiples of PADDED."""
    most = min(float(np.median(boxes.image_N2.max(axis=1))), largest or np.inf)
    factor, scales = 1.0, [present]
    while present[0] * factor < most:
        factor *= LARGER
        larger = (min(present[0] * factor, most) / present[0] * side for side in present)
        scales.append(tuple(PADDED * max(1, round(side / PADDED)) for side in larger))
    return scales


def _settings(resized: Boxes, present: Setting) -> Iterator[tuple[float, Setting]]:
    """Settings of one image scale, each with its share of boxes without a positive anchor."""
    now = present.anchors
    ratios = {tuple(now.ratios), *(ratio_quantiles(resized, number) for number in RATIOS)}
    all_ratios = sorted({ratio for some in ratios for ratio in some})
    bases, octaves = sorted({now.base_scale, *BASES}), sorted({now.scales_per_octave, *PER_OCTAVE})
    levels = sorted({present.levels, *LEVELS})
    sides = sorted({base * 2 ** (step / number) for base in bases for number in octaves for step in range(number)})
    good_LSRN = np.zeros((max(levels), len(sides), len(all_ratios), len(resized)), bool)
    for level in range(max(levels)):
        offset_N2 = offsets(resized, 8 * 2**level)
        for s, r in product(range(len(sides)), range(len(all_ratios))):
            side, root = sides[s] * 8 * 2**level, all_ratios[r] ** 0.5
            good_LSRN[level, s, r] = iou(resized.size_N2, offset_N2, side / root, side * root) >= POSITIVE
    for some in sorted(ratios):
        good_LSN: Any = good_LSRN[:, :, [all_ratios.index(ratio) for ratio in some]].any(axis=2)
        for base, number in product(bases, octaves):
            chosen = [sides.index(base * 2 ** (step / number)) for step in range(number)]
            good_LN = np.cumsum(good_LSN[:, chosen].any(axis=1), axis=0) > 0
            for level in levels:
                share = 1 - float(good_LN[level - 1].mean())
                yield share, replace(present, anchors=Anchors(base, number, some), levels=level)


def ratio_quantiles(boxes: Boxes, number: int) -> tuple[float, ...]:
    """So many ratios, height / width, that stand for equal parts of the boxes."""
    log_N = np.log2(boxes.size_N2[:, 1] / boxes.size_N2[:, 0])
    middle = np.quantile(log_N, (np.arange(number) + 0.5) / number)
    return tuple(dict.fromkeys(float(f"{2**value:.2g}") for value in middle))


def _change(new: Setting, old: Setting) -> float:
    """How far a setting is from another: values that differ, and then by how many octaves the smallest anchors do."""
    pairs = ((new.anchors.base_scale, old.anchors.base_scale), (new.levels, old.levels))
    pairs += ((new.anchors.ratios, old.anchors.ratios), (new.anchors.scales_per_octave, old.anchors.scales_per_octave))
    return sum(a != b for a, b in pairs) + abs(np.log2(new.anchors.base_scale / old.anchors.base_scale)) / 100
