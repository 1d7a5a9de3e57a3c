"""Training boxes made wrong on purpose, to see which loss stands it: a share with another class, a share moved.

Shapes: N boxes that are trained on; 4 is x, y, width, height in pixels, 2 is x, y.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ghm.errors import InputError

REACH = 0.3  # largest move of an edge, in widths or heights of its box: the mean IoU with the true box is then 0.57
LEAST = 2.0  # pixels that a moved box is wide and high at least
_LABELS, _BOXES = 3, 4  # first keys of the random streams; those before are the digits' own


@dataclass(frozen=True)
class Noise:
    """Which shares of the training boxes are wrong.

    A box that is wrong at one share is wrong in the same way at every larger share, and which boxes are moved does not
    depend on which get another class.
    """

    labels: float = 0.0
    boxes: float = 0.0
    seed: int = 0

    def apply(self, content: dict[str, Any]) -> None:
        """Change the content of a COCO file in place. What training leaves out stays as it is, and does not count.

        Raises:
            InputError: labels are to be wrong and there is one class.
        """
        if self.labels == self.boxes == 0:
            return
        ids, images = [entry["id"] for entry in content["categories"]], {each["id"]: each for each in content["images"]}
        with np.errstate(over="ignore", invalid="ignore"):  # coordinates of a file may be anything
            boxes = _trained_on(content["annotations"], ids, images)
            if self.labels > 0:
                self._mislabel(boxes, ids)
            if self.boxes > 0:
                self._move(boxes, images)

    def _mislabel(self, boxes: list[dict[str, Any]], ids: list[int]) -> None:
        """Another class for a share of the boxes, uniformly over the wrong ones."""
        if len(ids) < 2:
            raise InputError(f"data.label_noise must be 0 where the data have one class, got {self.labels}")
        place = {number: index for index, number in enumerate(ids)}
        rng, chosen = self._choose(_LABELS, self.labels, len(boxes))
        label_N = np.array([place[box["category_id"]] for box in boxes], np.int64)
        wrong_N = (label_N + rng.integers(1, len(ids), len(boxes))) % len(ids)
        for index in chosen:
            boxes[index]["category_id"] = ids[wrong_N[index]]

    def _move(self, boxes: list[dict[str, Any]], images: dict[int, dict[str, Any]]) -> None:
        """Each edge of a share of the boxes by a uniform draw of up to `REACH`, inside the image."""
        rng, chosen = self._choose(_BOXES, self.boxes, len(boxes))
        box_N4, side_N2 = _geometry(boxes, images)
        size_N2 = box_N4[:, 2:]
        move_N4 = rng.uniform(-REACH, REACH, box_N4.shape) * np.tile(size_N2, 2)
        low_N2 = np.clip(box_N4[:, :2] + move_N4[:, :2], 0, np.maximum(side_N2 - LEAST, 0))
        high_N2 = np.minimum(np.maximum(box_N4[:, :2] + size_N2 + move_N4[:, 2:], low_N2 + LEAST), side_N2)
        for index in chosen:
            (x, y), (width, height) = low_N2[index].tolist(), (high_N2 - low_N2)[index].tolist()
            boxes[index] |= {"bbox": [x, y, width, height], "area": width * height}

    def _choose(self, stream: int, share: float, number: int) -> tuple[np.random.Generator, list[int]]:
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(stream,)))
        return rng, rng.permutation(number)[: round(share * number)].tolist()


def _trained_on(boxes: list[dict[str, Any]], ids: list[int], images: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """The boxes that mmdet's CocoDataset gives to training. Others may be wrong, which `validation` tells."""
    classes = {*ids}
    boxes = [
        box
        for box in boxes
        if box["image_id"] in images and box["category_id"] in classes
        if box["area"] > 0 and not box.get("iscrowd") and not box.get("ignore")
    ]
    box_N4, side_N2 = _geometry(boxes, images)
    start_N2, size_N2 = box_N4[:, :2], box_N4[:, 2:]
    seen_N2 = np.minimum(start_N2 + size_N2, side_N2) - np.maximum(start_N2, 0)
    kept_N4 = np.isfinite(box_N4) & np.tile((size_N2 >= 1) & (seen_N2 > 0), 2)
    return [box for box, kept_4 in zip(boxes, kept_N4.tolist(), strict=True) if all(kept_4)]


def _geometry(boxes: list[dict[str, Any]], images: dict[int, dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The boxes, float64 [N, 4], and the width and height of their images, float64 [N, 2]."""
    sides = [(images[box["image_id"]]["width"], images[box["image_id"]]["height"]) for box in boxes]
    box_N4 = np.array([box["bbox"] for box in boxes], np.float64).reshape(-1, 4)
    return box_N4, np.array(sides, np.float64).reshape(-1, 2)
