"""A RetinaNet head that knows which anchors form one population of GHM.

Shapes: N examples (anchors of all levels), C classes, B images, H x W positions, A anchors a position, L levels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from mmdet.models.dense_heads import RetinaHead
from mmdet.structures.bbox import cat_boxes, get_box_tensor
from mmdet.utils import InstanceList, OptInstanceList
from torch import Tensor

from ghm.losses import FocalLoss, OHEMLoss, SmoothL1Loss
from ghm.losses.statistics import HarmonisedLoss
from ghm.registry import MODELS


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

    def examples(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: OptInstanceList = None,
    ) -> tuple[Examples, float]:
        """Assign targets to anchors.

        Args:
            cls_scores: one [B, A * C, H, W] a level.
            bbox_preds: one [B, A * 4, H, W] a level.
            batch_gt_instances, batch_img_metas, batch_gt_instances_ignore: as in mmdet.

        Returns:
            The examples, and the number of positive anchors of the batch, at least 1.
        """
        shapes = [tuple(scores.shape[-2:]) for scores in cls_scores]
        anchors, valid_flags = self.get_anchors(shapes, batch_img_metas, device=cls_scores[0].device)
        # get_targets empties the lists it is given, so the anchors of the levels are put together before.
        level_anchors = list(zip(*anchors, strict=True)) if self.reg_decoded_bbox else []
        *targets, positives = self.get_targets(
            anchors, valid_flags, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
        )
        label_N, label_weight_N, box_target_N4, box_weight_N4 = (
            torch.cat([level.flatten(0, 1) for level in levels]) for levels in targets
        )
        box_N4 = _flatten(bbox_preds, self.bbox_coder.encode_size)
        if self.reg_decoded_bbox:
            anchor_N4 = cat_boxes([image for level in level_anchors for image in level])
            box_N4 = get_box_tensor(self.bbox_coder.decode(anchor_N4, box_N4))
        sizes, logit_NC = [level.numel() for level in targets[0]], _flatten(cls_scores, self.cls_out_channels)
        return Examples(sizes, logit_NC, label_N, label_weight_N, box_N4, box_target_N4, box_weight_N4), positives

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: OptInstanceList = None,
    ) -> dict[str, list[Tensor]]:
        """Return `loss_cls` and `loss_bbox`, scalars that add up to the loss, and to be logged with them the number of
        `positives`, anchors that stand for an object. Arguments as in `examples`."""
        batch, positives = self.examples(
            cls_scores, bbox_preds, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
        )
        classes = (batch.logit_NC, batch.label_N, batch.label_weight_N)
        boxes = (batch.box_N4, batch.box_target_N4, batch.box_weight_N4)
        return {
            "loss_cls": _by_level(self.loss_cls, classes, batch.sizes, positives),
            "loss_bbox": _by_level(self.loss_bbox, boxes, batch.sizes, positives),
            "positives": [((batch.label_N >= 0) & (batch.label_N < self.num_classes)).sum().float()],
        }


def _flatten(maps: list[Tensor], channels: int) -> Tensor:
    """[B, A * channels, H, W] of every level as [N, channels], with one copy."""
    images = [image for level in maps for image in level.flatten(2).transpose(1, 2).unbind()]
    return torch.cat(images).reshape(-1, channels)


def _by_level(
    loss: Callable[..., Tensor], inputs: tuple[Tensor, ...], sizes: list[int], positives: float
) -> list[Tensor]:
    if isinstance(loss, HarmonisedLoss):
        return list(loss(*inputs, avg_factor=positives, sizes=sizes).unbind())
    if isinstance(loss, FocalLoss | OHEMLoss | SmoothL1Loss):
        return [loss(*inputs, avg_factor=positives)]  # needs no levels: a sum over examples, or over the hardest of all
    levels = zip(*(tensor.split(sizes) for tensor in inputs), strict=True)
    return [loss(*level, avg_factor=positives) for level in levels]
