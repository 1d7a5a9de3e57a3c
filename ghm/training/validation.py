"""AP so far: a glance at a training that runs, on a part of the validation split. Nothing is chosen by it."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ghm import truth
from ghm.registry import DATASETS
from ghm.training.samples import collate

AT_ONCE = 4  # images: of the first process's share or less, however many processes the training has


class ValidationSample:
    """A few images of a split, evenly spaced, and their true boxes.

    Args:
        cfg: of a training; its `validation` names the data set and how many images.
    """

    def __init__(self, cfg: Config) -> None:
        self.dataset: Any = DATASETS.build(cfg.validation.dataset)
        count = min(cfg.validation.images, len(self.dataset))
        self.chosen = np.unique(np.linspace(0, len(self.dataset) - 1, count).astype(int)).tolist()
        self.batch_size = min(cfg.train_dataloader.batch_size, AT_ONCE)
        self.truth = truth.index(truth.read(Path(cfg.validation.annotations)))
        self.categories = self.truth.getCatIds(catNms=list(self.dataset.metainfo["classes"]))

    @torch.no_grad()
    def __call__(self, detector: Any) -> float:
        """AP at IoU 0.50:0.95, a fraction; -1 where the images have no boxes. An unreadable image has no detections."""
        found: list[dict[str, Any]] = []
        for start in range(0, len(self.chosen), self.batch_size):
            batch = collate([self.dataset[index] for index in self.chosen[start : start + self.batch_size]])
            del batch["unreadable"]
            if batch["inputs"]:
                for sample in detector.val_step(batch):
                    found += self._results(sample)
        results: Any = found
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self.truth, self.truth.loadRes(results) if found else COCO(), "bbox")
            evaluation.params.imgIds = [self.dataset.get_data_info(index)["img_id"] for index in self.chosen]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return float(evaluation.stats[0])

    def _results(self, sample: Any) -> list[dict[str, Any]]:
        """Detections of an image in COCO's format."""
        instances = sample.pred_instances
        corners = instances.bboxes.tolist()
        rows = zip(corners, instances.scores.tolist(), instances.labels.tolist(), strict=True)
        return [
            {
                "image_id": sample.img_id,
                "category_id": self.categories[label],
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
            }
            for (left, top, right, bottom), score, label in rows
        ]
