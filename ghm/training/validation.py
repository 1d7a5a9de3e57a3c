"""AP so far: of a detector that is being trained, on a part of the validation split. Nothing is chosen by it."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from pycocotools.cocoeval import COCOeval

from ghm import truth
from ghm.predict import by_size, predict
from ghm.registry import DATASETS
from ghm.training.samples import collate

AT_ONCE = 4  # images: the first process's share or less, however many processes the run has


class ValidationSample:
    """A few images of a split, evenly spaced, and their true boxes.

    Args:
        cfg: of a training run; its `validation` names the data set and how many images.
    """

    def __init__(self, cfg: Config) -> None:
        self.dataset: Any = DATASETS.build(cfg.validation.dataset)
        count = min(cfg.validation.images, len(self.dataset))
        self.chosen = np.unique(np.linspace(0, len(self.dataset) - 1, count).astype(int)).tolist()
        self.batch_size = min(cfg.train_dataloader.batch_size, AT_ONCE)
        self.divisor = cfg.model.data_preprocessor.pad_size_divisor
        self.truth = truth.index(truth.read(Path(cfg.validation.annotations)))

    def __call__(self, detector: Any) -> float:
        """AP at IoU 0.50:0.95, a fraction; -1 where the images have no boxes. An unreadable image has no detections."""
        batches = map(collate, by_size((self.dataset[n] for n in self.chosen), self.batch_size, self.divisor))
        category_ids = self.dataset.dataset.cat_ids
        results = [
            row for sample, found in predict(detector, batches) for row in found.coco(sample.img_id, category_ids)
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self.truth, truth.results(self.truth, results), "bbox")
            evaluation.params.imgIds = [self.dataset.get_data_info(index)["img_id"] for index in self.chosen]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return float(evaluation.stats[0])
