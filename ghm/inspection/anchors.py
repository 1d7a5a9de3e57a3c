"""How well the anchors fit the boxes of a data set, from its annotations alone.

A box is learned from the anchors that overlap it by an IoU of 0.5 or more, `POSITIVE`. Which shapes there are is a
matter of `model.anchors`, `model.levels` and `train.image_scale`; where they stand, of the strides. A box smaller than
the stride may have its shape among the anchors and still lie between two of them, so both are measured: the best IoU
of a box with its centre on an anchor's, and with the anchors where they are.

Shapes: N boxes; 4 is left, top, right, bottom, and 2 is width, height, in pixels.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from ghm.data.annotations import Annotations
from ghm.params import Anchors, Params

POSITIVE, NEGATIVE = 0.5, 0.4  # IoU from which an anchor stands for a box, and below which for background
MOST = 100_000  # boxes that are measured; of more, a sample
PADDED = 32  # `config.preprocessor` pads to multiples of it


@dataclass(frozen=True)
class Boxes:
    """Boxes that are trained on, and the size of the image of each."""

    corner_N4: np.ndarray
    image_N2: np.ndarray

    def __len__(self) -> int:
        return len(self.corner_N4)

    def sample(self, most: int) -> "Boxes":
        """At most so many of them."""
        chosen = _some(len(self), most)
        return Boxes(self.corner_N4[chosen], self.image_N2[chosen])

    def resized(self, scale: tuple[int, ...]) -> "Boxes":
        """As `ghm.Resize` makes them: the image as large as fits [long, short], its aspect kept."""
        factor_N = np.minimum(max(scale) / self.image_N2.max(axis=1), min(scale) / self.image_N2.min(axis=1))
        image_N2 = np.maximum(1, np.floor(self.image_N2 * factor_N[:, None] + 0.5))
        corner_N4 = self.corner_N4 * np.tile(image_N2 / self.image_N2, 2)
        return Boxes(np.clip(corner_N4, 0, np.tile(image_N2, 2)), image_N2)

    @property
    def size_N2(self) -> np.ndarray:  # noqa: N802  (it carries its shape)
        return self.corner_N4[:, 2:] - self.corner_N4[:, :2]


def used(content: Annotations) -> Boxes:
    """The boxes that mmdet trains on, MOST at most: no crowds, none that is empty or outside its image."""
    sizes = {image.id: (image.width, image.height) for image in content.images}
    boxes = [box for box in content.annotations if not (box.iscrowd or box.ignore) and (box.area or 0) > 0]
    boxes = [boxes[place] for place in _some(len(boxes), MOST)]
    box_N4 = np.array([box.bbox for box in boxes], float).reshape(-1, 4)
    image_N2 = np.array([sizes[box.image_id] for box in boxes], float).reshape(-1, 2)
    corner_N4 = np.concatenate([box_N4[:, :2], box_N4[:, :2] + box_N4[:, 2:]], axis=1)
    corner_N4 = np.clip(corner_N4, 0, np.tile(image_N2, 2))
    kept_N = (box_N4[:, 2:] >= 1).all(axis=1) & (corner_N4[:, 2:] > corner_N4[:, :2]).all(axis=1)
    return Boxes(corner_N4[kept_N], image_N2[kept_N])


def _some(number: int, most: int) -> np.ndarray:
    """Places in a list of so many, all or `most` of them, drawn with a fixed seed."""
    every = np.arange(number)
    return every if number <= most else np.sort(np.random.default_rng(0).choice(every, most, replace=False))


@dataclass(frozen=True)
class Setting:
    """What decides which anchors there are, and what they cost."""

    anchors: Anchors
    levels: int
    image_scale: tuple[int, ...]

    @classmethod
    def of(cls, parameters: Params) -> "Setting":
        return cls(parameters.model.anchors, parameters.model.levels, tuple(parameters.train.image_scale))

    def shapes(self) -> Iterator[tuple[int, float, float]]:
        """The stride, width and height of each anchor of a position, as mmdet's AnchorGenerator has them."""
        octaves = range(self.anchors.scales_per_octave)
        for level, ratio, octave in product(range(self.levels), self.anchors.ratios, octaves):
            stride = 8 * 2**level
            side = stride * self.anchors.base_scale * 2 ** (octave / self.anchors.scales_per_octave)
            yield stride, side / ratio**0.5, side * ratio**0.5

    def sections(self) -> dict[str, Any]:
        """As `params.yaml` has it."""
        anchors = {**asdict(self.anchors), "ratios": list(self.anchors.ratios)}
        return {"model": {"anchors": anchors, "levels": self.levels}, "train": {"image_scale": list(self.image_scale)}}

    def values(self) -> dict[str, Any]:
        """The same, named like `model.levels`."""
        model, train = self.sections().values()
        anchors = {f"model.anchors.{name}": value for name, value in model["anchors"].items()}
        return {**anchors, "model.levels": model["levels"], "train.image_scale": train["image_scale"]}

    @property
    def per_image(self) -> float:
        """How many anchors a square image has, in proportion."""
        of_position = self.anchors.scales_per_octave * len(self.anchors.ratios)
        return of_position * sum(self.image_scale[0] ** 2 / 4**level for level in range(self.levels))


def best_iou(boxes: Boxes, setting: Setting, *, aligned: bool = False) -> np.ndarray:
    """The highest IoU of each box with any anchor, [N]; where `aligned`, as if an anchor stood in its centre."""
    boxes = boxes.resized(setting.image_scale)
    best_N = np.zeros(len(boxes))
    for stride, width, height in setting.shapes():
        offset_N2 = np.zeros((len(boxes), 2)) if aligned else offsets(boxes, stride)
        np.maximum(best_N, iou(boxes.size_N2, offset_N2, width, height), out=best_N)
    return best_N


def offsets(resized: Boxes, stride: int) -> np.ndarray:
    """How far each box is from the nearest position of a level, which stand at multiples of the stride, [N, 2]."""
    centre_N2 = (resized.corner_N4[:, :2] + resized.corner_N4[:, 2:]) / 2
    last_N2 = np.ceil(np.ceil(resized.image_N2 / PADDED) * PADDED / stride) - 1
    return np.abs(centre_N2 - stride * np.clip(np.round(centre_N2 / stride), 0, last_N2))


def iou(size_N2: np.ndarray, offset_N2: np.ndarray, width: float, height: float) -> np.ndarray:
    """IoU of each box with an anchor of this shape whose centre is so far away, [N]."""
    anchor_2 = np.array([width, height])
    common_N2 = np.minimum(np.minimum(size_N2, anchor_2), (size_N2 + anchor_2) / 2 - offset_N2).clip(0)
    common_N = common_N2[:, 0] * common_N2[:, 1]
    return common_N / (size_N2[:, 0] * size_N2[:, 1] + width * height - common_N)


def missed(boxes: Boxes, setting: Setting) -> float:
    """The share of boxes without a positive anchor."""
    return float((best_iou(boxes, setting) < POSITIVE).mean())
