"""How the gradient norms of a detector are distributed while it learns: what GHM harmonises, measured for any loss."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghm.losses.density import (
    classification_gradient_norm,
    region_counts,
    region_edges,
    region_index,
    regression_gradient_norm,
)
from ghm.training.batches import Batch, collate, prepare

BINS = 120  # a multiple of the 5, 10, 20, 30 and 40 unit regions that the paper compares
IMAGES = 64  # of the training set, evenly spaced
AT_ONCE = 4  # images: the norms need several times the memory of a step, and one process has them all
MU = 0.02  # the paper's, for boxes of a variant without GHM-R


def measure(model: Any, dataset: Any, epoch: int) -> list[dict[str, Any]]:
    """Count the examples in each of 120 uniform bins of the gradient norm, on the same training images every time.

    `cls`: g = |p - p*| of every valid anchor and class. `box`: g = |d / sqrt(d^2 + mu^2)| of the four deltas of every
    positive anchor, with the mu of the variant's own GHM-R or the paper's. The network is in evaluation mode meanwhile,
    and its statistics do not move.

    Args:
        model: the detector.
        dataset: of `ghm.training.samples.Samples`; images that cannot be read are left out.
        epoch: how many the network has been trained.

    Returns:
        Rows of the table `runs.GRADIENT_NORMS`.
    """
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(IMAGES, len(dataset))).astype(int))
    total = {kind: torch.zeros(BINS, dtype=torch.int64) for kind in ("cls", "box")}
    model.eval()
    for start in range(0, len(chosen), AT_ONCE):
        batch = collate([dataset[int(index)] for index in chosen[start : start + AT_ONCE]])
        if len(batch):
            for kind, count_K in _histograms(model, batch).items():
                total[kind] += count_K
    model.train()
    edges = [round(edge / BINS, 6) for edge in range(BINS + 1)]
    return [
        {"epoch": epoch, "kind": kind, "low": low, "high": high, "count": count}
        for kind, count_K in total.items()
        for low, high, count in zip(edges, edges[1:], count_K.tolist(), strict=False)
    ]


@torch.no_grad()
def _histograms(model: Any, batch: Batch) -> dict[str, Tensor]:
    """The number of examples of each kind in each bin, int64 on the CPU; a norm that is NaN is in no bin."""
    (image_B3HW, truth), head = prepare(model, batch), model.bbox_head
    examples, _ = head.examples(*head(model.extract_feat(image_B3HW)), truth)
    logit_NC = examples.logit_NC.float()
    if not head.use_sigmoid_cls:
        # Softmax: the last output is the background's, and p* compares with the classes.
        logit_NC = logit_NC.softmax(-1)[:, :-1].logit()
    target_NC = (examples.label_N[:, None] == torch.arange(logit_NC.shape[1], device=logit_NC.device)).float()
    difference_N4 = (examples.box_N4 - examples.box_target_N4).float()
    has_deltas = not head.reg_decoded_bbox  # an IoU loss has none to measure
    edge_E = region_edges(BINS, end=1 + 1e-6).to(logit_NC.device)

    def count(norm: Tensor, valid: Tensor) -> Tensor:
        return region_counts(region_index(norm, valid, edge_E=edge_E), bins=BINS).cpu()

    return {
        "cls": count(
            classification_gradient_norm(logit_NC, target_NC),
            (examples.label_weight_N > 0)[:, None].expand_as(target_NC),
        ),
        "box": count(
            regression_gradient_norm(difference_N4, mu=getattr(head.loss_bbox, "mu", MU)),
            (examples.box_weight_N4 > 0) & has_deltas,
        ),
    }
