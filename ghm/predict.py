"""The one way to run a detector: batches of images -> boxes, scores and classes.

Shapes: N detections of an image.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ghm.errors import InputError

if TYPE_CHECKING:
    from ghm.training.samples import BadImages

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Detections:
    """What a detector finds on an image, best first."""

    box_N4: np.ndarray  # corners in pixels of the image as stored: left, top, right, bottom
    score_N: np.ndarray
    label_N: np.ndarray  # 0..C-1

    def above(self, score: float) -> "Detections":
        """Those of at least this score."""
        chosen_N = self.score_N >= score
        return Detections(self.box_N4[chosen_N], self.score_N[chosen_N], self.label_N[chosen_N])

    def coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """In COCO's result format; `category_ids` are those of the labels."""
        rows = zip(self.box_N4.tolist(), self.score_N.tolist(), self.label_N.tolist(), strict=True)
        return [
            {
                "image_id": image_id,
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
                "category_id": category_ids[label],
            }
            for (left, top, right, bottom), score, label in rows
        ]


def predict(
    model: Any, batches: Iterable[dict[str, Any]], bad_images: "BadImages | None" = None
) -> Iterator[tuple[Any, Detections]]:
    """Detect on batches of images.

    Args:
        model: a detector of mmdet in evaluation mode, as `ghm.detector.load` returns it.
        batches: mmdet's `inputs` and `data_samples`, and `unreadable`, as `ghm.collate` puts them together.
        bad_images: names the images that cannot be read, counts them, and says when they are too many. Without it they
            are left out in silence.

    Yields:
        For each image that can be read, in order: mmdet's data sample (`img_id`, `img_path`, `ori_shape`) and the
        detections.

    Raises:
        InputError: too many images cannot be read, or the model needs an operator that is not installed.
    """
    for batch in batches:
        unreadable = batch.pop("unreadable")
        if bad_images is not None:
            for line in bad_images.add(unreadable):
                _log.warning(line)
            bad_images.require()
        if not batch["inputs"]:
            continue
        try:
            with torch.no_grad():
                samples = model.test_step(batch)
        except NotImplementedError as error:
            raise InputError(str(error)) from error
        for sample in samples:
            yield sample, _detections(sample.pred_instances)


def _detections(instances: Any) -> Detections:
    box_N4, score_N = (tensor.float().cpu().numpy() for tensor in (instances.bboxes, instances.scores))
    order_N = np.argsort(-score_N, kind="stable")
    return Detections(box_N4[order_N], score_N[order_N], instances.labels.cpu().numpy()[order_N])
