"""A RetinaNet head that knows which anchors form one population of GHM.

Shapes: N examples (anchors of all levels), C classes, B images, H x W positions, A anchors a position, L levels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.dense_heads import RetinaHead
from mmdet.structures import SampleList
from mmdet.structures.bbox import cat_boxes, get_box_tensor
from mmdet.utils import InstanceList, OptInstanceList
from torch import Tensor

from ghm.errors import InputError
from ghm.losses import FocalLoss, OHEMLoss, SmoothL1Loss
from ghm.losses.statistics import HarmonisedLoss
from ghm.registry import MODELS
from ghm.targets import Grid, Truth, assign, covers, spread

MOST_GRIDS = 32  # shapes of a pyramid whose anchors are kept: 10 MB each at 800 x 1344 with 9 a position
COVERED = (
    "from a Truth, targets are assigned by MaxIoUAssigner with PseudoSampler, allowed_border and pos_weight -1, and no "
    "ignore_iof_thr: give the head such a train_cfg or mmdet's data samples"
)


@dataclass(frozen=True)
class Examples:
    """The anchors of a batch with their targets: level after level, and in a level image after image.

    `label_N` holds 0..C-1 for objects and C for background; a weight of 0 marks what is ignored.
    Boxes are encoded deltas, or decoded boxes in pixels with `reg_decoded_bbox`.
    """

    sizes: list[int]  # examples of each level
    logit_NC: Tensor
    label_N: Tensor
    label_weight_N: Tensor
    box_N4: Tensor
    box_target_N4: Tensor
    box_weight_N4: Tensor


@MODELS.register_module()
class GHMRetinaHead(RetinaHead):
    """mmdet's RetinaNet head, with all examples of a loss gathered in one place.

    One FPN level is one population of GHM, in level order, as in the reference code and in mmdet: the published
    figures come from that. `statistics="batch"` of a loss makes all levels one. Our losses take all levels in one call,
    other losses one level a call, as in mmdet. Constructor, parameters and losses are those of `mmdet.RetinaHead`;
    checkpoints load both ways.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._grids: dict[tuple[Any, ...], Grid] = {}

    def loss(self, x: tuple[Tensor], batch_data_samples: SampleList | Truth) -> dict[str, list[Tensor]]:
        """As in mmdet, or from a `Truth` on the device, without ever waiting for that. See `loss_by_feat`."""
        if isinstance(batch_data_samples, Truth):
            cls_scores, bbox_preds = self(x)
            return self._losses(*self.examples(cls_scores, bbox_preds, batch_data_samples))
        return super().loss(x, batch_data_samples)

    def examples(self, cls_scores: list[Tensor], bbox_preds: list[Tensor], truth: Truth) -> tuple[Examples, Tensor]:
        """Assign targets to anchors.

        Args:
            cls_scores: one [B, A * C, H, W] a level.
            bbox_preds: one [B, A * 4, H, W] a level.
            truth: on their device.

        Returns:
            The examples, and what losses are divided by: the positive anchors of all images, at least 1 of each;
            float32, [].

        Raises:
            InputError: the head is configured to assign in another way than `ghm.targets` does.
        """
        grid, images = self._grid(cls_scores), len(cls_scores[0])
        sizes = [scores.numel() // (images * self.cls_out_channels) for scores in cls_scores]
        targets, positives = assign(truth, grid, sizes, self.assigner, self.num_classes, decoded=self.reg_decoded_bbox)
        anchor_N4 = spread(grid.corner_P4, sizes, images) if self.reg_decoded_bbox else None
        return self._examples(cls_scores, bbox_preds, anchor_N4, targets), positives

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: OptInstanceList = None,
    ) -> dict[str, list[Tensor]]:
        """Return `loss_cls` and `loss_bbox`, scalars that add up to the loss, and to be logged with them the number of
        `positives`, anchors that stand for an object. Arguments as in mmdet."""
        if covers(self):
            truth = Truth.of(batch_gt_instances, batch_img_metas)
            return self._losses(*self.examples(cls_scores, bbox_preds, truth))
        shapes = [tuple(scores.shape[-2:]) for scores in cls_scores]
        anchors, valid_flags = self.get_anchors(shapes, batch_img_metas, device=cls_scores[0].device)
        # Put together before get_targets, which empties the lists that it is given.
        anchor_N4 = cat_boxes([image for level in zip(*anchors, strict=True) for image in level])
        *levels, positives = self.get_targets(
            anchors, valid_flags, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
        )
        targets = [torch.cat([level.flatten(0, 1) for level in target]) for target in levels]
        return self._losses(self._examples(cls_scores, bbox_preds, anchor_N4, targets), positives)

    def _examples(
        self, cls_scores: list[Tensor], bbox_preds: list[Tensor], anchor_N4: Any, targets: Iterable[Tensor]
    ) -> Examples:
        box_N4 = _flatten(bbox_preds, self.bbox_coder.encode_size)
        if self.reg_decoded_bbox:
            box_N4 = get_box_tensor(self.bbox_coder.decode(anchor_N4, box_N4))
        sizes = [scores.numel() // self.cls_out_channels for scores in cls_scores]
        label_N, label_weight_N, box_target_N4, box_weight_N4 = targets
        logit_NC = _flatten(cls_scores, self.cls_out_channels)
        return Examples(sizes, logit_NC, label_N, label_weight_N, box_N4, box_target_N4, box_weight_N4)

    def _losses(self, batch: Examples, positives: float | Tensor) -> dict[str, list[Tensor]]:
        classes = (batch.logit_NC, batch.label_N, batch.label_weight_N)
        boxes = (batch.box_N4, batch.box_target_N4, batch.box_weight_N4)
        return {
            "loss_cls": _by_level(self.loss_cls, classes, batch.sizes, positives),
            "loss_bbox": _by_level(self.loss_bbox, boxes, batch.sizes, positives),
            "positives": [batch.box_weight_N4[:, 0].sum()],
        }

    def _grid(self, maps: list[Tensor]) -> Grid:
        """The anchors of a pyramid of this shape, on the device of its maps; made once, if the head is covered."""
        shapes, device = [(level.shape[2], level.shape[3]) for level in maps], maps[0].device
        key = (*shapes, device)
        if key not in self._grids:
            if not covers(self):
                raise InputError(f"{COVERED}, got {self.train_cfg}")
            if len(self._grids) == MOST_GRIDS:
                del self._grids[next(iter(self._grids))]
            self._grids[key] = Grid.of(self.prior_generator, self.bbox_coder, shapes).to(device)
        return self._grids[key]


def _flatten(maps: list[Tensor], channels: int) -> Tensor:
    """[B, A * channels, H, W] of every level as [N, channels]: with one copy where they are channels_last, else two."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in maps])


def _by_level(
    loss: Callable[..., Tensor], inputs: tuple[Tensor, ...], sizes: list[int], positives: float | Tensor
) -> list[Tensor]:
    if isinstance(loss, HarmonisedLoss):
        return list(loss(*inputs, avg_factor=positives, sizes=sizes).unbind())
    if isinstance(loss, FocalLoss | OHEMLoss | SmoothL1Loss):
        return [loss(*inputs, avg_factor=positives)]  # needs no levels: a sum over examples, or over the hardest of all
    levels = zip(*(tensor.split(sizes) for tensor in inputs), strict=True)
    return [loss(*level, avg_factor=positives) for level in levels]
