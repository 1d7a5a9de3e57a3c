"""How the gradient norms of a detector are distributed while it learns: what GHM harmonises, measured for any loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor

from ghm.head import Examples, GHMRetinaHead
from ghm.losses.density import (
    classification_gradient_norm,
    region_counts,
    region_edges,
    region_index,
    regression_gradient_norm,
)
from ghm.registry import HOOKS

FILE = "gradient_norms.csv"
BINS = 120  # a multiple of the 5, 10, 20, 30 and 40 unit regions that the paper compares
IMAGES = 64  # of the training set, evenly spaced
MU = 0.02  # the paper's, for boxes of a variant without GHM-R


@HOOKS.register_module()
class GradientNormHook(Hook):
    """Write `gradient_norms.csv` into the work directory: before training (epoch 0) and after each epoch, the number of
    examples in each of 120 uniform bins of the gradient norm, on the same training images every time.

    `cls`: g = |p - p*| of every valid anchor and class. `box`: g = |d / sqrt(d^2 + mu^2)| of the four deltas of every
    positive anchor, with the mu of the variant's own GHM-R or the paper's. The network is in evaluation mode and its
    statistics do not move; the random state of NumPy is left as it was.
    """

    def before_train(self, runner: Any) -> None:
        if runner.epoch == 0:
            self._record(runner, 0)

    def after_train_epoch(self, runner: Any) -> None:
        self._record(runner, runner.epoch + 1)

    def _record(self, runner: Any, epoch: int) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        loader = runner.train_dataloader
        random = np.random.get_state()
        model.eval()
        count = _count(model, loader.dataset, loader.batch_sampler.batch_size)
        model.train()
        np.random.set_state(random)
        if runner.rank == 0:
            _write(Path(runner.work_dir) / FILE, epoch, count)


def _write(path: Path, epoch: int, count: dict[str, Tensor]) -> None:
    edges = np.arange(BINS + 1) / BINS
    tables = [
        pd.DataFrame({"epoch": epoch, "kind": kind, "low": edges[:-1], "high": edges[1:], "count": count_K.numpy()})
        for kind, count_K in count.items()
    ]
    if epoch and path.exists():
        # A resumed training measures its first epoch again.
        tables.insert(0, pd.read_csv(path).query("epoch < @epoch"))
    pd.concat(tables).to_csv(path, index=False, float_format="%.6f")


@torch.no_grad()
def _count(model: Any, dataset: Any, batch_size: int) -> dict[str, Tensor]:
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(IMAGES, len(dataset))).astype(int))
    total = {"cls": torch.zeros(BINS, dtype=torch.int64), "box": torch.zeros(BINS, dtype=torch.int64)}
    for start in range(0, len(chosen), batch_size):
        batch = pseudo_collate([dataset[int(index)] for index in chosen[start : start + batch_size]])
        batch = model.data_preprocessor(batch, training=True)
        samples = batch["data_samples"]
        scores, boxes = model.bbox_head(model.extract_feat(batch["inputs"]))
        examples, _ = model.bbox_head.examples(
            scores, boxes, [sample.gt_instances for sample in samples], [sample.metainfo for sample in samples]
        )
        total["cls"] += _classification_counts(model.bbox_head, examples).cpu()
        total["box"] += _regression_counts(model.bbox_head, examples).cpu()
    return total


def _classification_counts(head: GHMRetinaHead, examples: Examples) -> Tensor:
    logit_NC = examples.logit_NC.float()
    if not head.use_sigmoid_cls:
        # Softmax: the last output is the background's, and p* compares with the classes.
        logit_NC = logit_NC.softmax(-1)[:, :-1].logit()
    target_NC = (examples.label_N[:, None] == torch.arange(logit_NC.shape[1], device=logit_NC.device)).float()
    valid_NC = (examples.label_weight_N > 0)[:, None].expand_as(target_NC)
    return _histogram(classification_gradient_norm(logit_NC, target_NC), valid_NC)


def _regression_counts(head: GHMRetinaHead, examples: Examples) -> Tensor:
    valid_N4 = examples.box_weight_N4 > 0
    if head.reg_decoded_bbox:
        valid_N4 = torch.zeros_like(valid_N4)  # an IoU loss has no deltas to measure
    difference_N4 = (examples.box_N4 - examples.box_target_N4).float()
    return _histogram(regression_gradient_norm(difference_N4, mu=getattr(head.loss_bbox, "mu", MU)), valid_N4)


def _histogram(norm: Tensor, valid: Tensor) -> Tensor:
    edges = region_edges(BINS, end=1 + 1e-6).to(norm.device)
    return region_counts(region_index(norm, valid, edge_E=edges), bins=BINS)
