"""A RetinaNet head that knows which anchors form one population of GHM.

Shapes: N examples (anchors of one population), C classes, B images, H x W positions, A anchors a position.
"""

from dataclasses import dataclass

from mmdet.models.dense_heads import RetinaHead
from mmdet.models.utils import images_to_levels
from mmdet.structures.bbox import cat_boxes, get_box_tensor
from mmdet.utils import InstanceList, OptInstanceList
from torch import Tensor

from ghm.registry import MODELS


@dataclass(frozen=True)
class Population:
    """The examples whose gradient norms share one density.

    `label_N` holds 0..C-1 for objects and C for background; a weight of 0 marks what is ignored.
    Boxes are encoded deltas, or decoded boxes in pixels with `reg_decoded_bbox`.
    """

    logit_NC: Tensor
    label_N: Tensor
    label_weight_N: Tensor
    box_N4: Tensor
    box_target_N4: Tensor
    box_weight_N4: Tensor


@MODELS.register_module()
class GHMRetinaHead(RetinaHead):
    """mmdet's RetinaNet head, with the examples of a loss gathered in one place.

    One FPN level is one population, in level order, as in the reference code and in mmdet: the published figures come
    from that. Constructor, parameters and losses are those of `mmdet.RetinaHead`; checkpoints load both ways.
    """

    def populations(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: OptInstanceList = None,
    ) -> tuple[list[Population], float]:
        """Assign targets to anchors.

        Args:
            cls_scores: one [B, A * C, H, W] a level.
            bbox_preds: one [B, A * 4, H, W] a level.
            batch_gt_instances, batch_img_metas, batch_gt_instances_ignore: as in mmdet.

        Returns:
            One population a level, and the number of positive anchors of the batch, at least 1.
        """
        device = cls_scores[0].device
        sizes = [tuple(scores.shape[-2:]) for scores in cls_scores]
        anchors, valid_flags = self.get_anchors(sizes, batch_img_metas, device=device)
        # get_targets empties the lists it is given, so the anchors of the levels are put together before.
        level_sizes = [len(level) for level in anchors[0]]
        level_anchors = images_to_levels([cat_boxes([*image]) for image in anchors], level_sizes)
        *targets, positives = self.get_targets(
            anchors, valid_flags, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
        )
        levels = zip(cls_scores, bbox_preds, level_anchors, *targets, strict=True)
        return [self._population(*level) for level in levels], positives

    def _population(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        anchors: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        bbox_targets: Tensor,
        bbox_weights: Tensor,
    ) -> Population:
        box_N4 = bbox_pred.permute(0, 2, 3, 1).reshape(-1, self.bbox_coder.encode_size)
        if self.reg_decoded_bbox:
            box_N4 = get_box_tensor(self.bbox_coder.decode(anchors.reshape(-1, anchors.shape[-1]), box_N4))
        return Population(
            logit_NC=cls_score.permute(0, 2, 3, 1).reshape(-1, self.cls_out_channels),
            label_N=labels.reshape(-1),
            label_weight_N=label_weights.reshape(-1),
            box_N4=box_N4,
            box_target_N4=bbox_targets.reshape(-1, bbox_targets.shape[-1]),
            box_weight_N4=bbox_weights.reshape(-1, bbox_weights.shape[-1]),
        )

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: OptInstanceList = None,
    ) -> dict[str, list[Tensor]]:
        """Return `loss_cls` and `loss_bbox`, one scalar a population; arguments as in `populations`."""
        populations, positives = self.populations(
            cls_scores, bbox_preds, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
        )
        return {
            "loss_cls": [
                self.loss_cls(each.logit_NC, each.label_N, each.label_weight_N, avg_factor=positives)
                for each in populations
            ],
            "loss_bbox": [
                self.loss_bbox(each.box_N4, each.box_target_N4, each.box_weight_N4, avg_factor=positives)
                for each in populations
            ],
        }
