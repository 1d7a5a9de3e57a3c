"""Laws of the head: it is mmdet's RetinaNet head, with the examples of a loss in one place."""

from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from ghm.head import GHMRetinaHead
from ghm.targets import Truth

CLASSES = 3
LOSSES = {
    "focal": dict(type="mmdet.FocalLoss", use_sigmoid=True),
    "ghmc": dict(type="ghm.GHMC", bins=10, momentum=0.75, use_sigmoid=True),
    "mmdets_ghmc": dict(type="mmdet.GHMC", bins=10, momentum=0.75, use_sigmoid=True),
    "our_focal": dict(type="ghm.FocalLoss", use_sigmoid=True),
    "softmax": dict(type="mmdet.CrossEntropyLoss", use_sigmoid=False),
}
BOX_LOSSES = {
    "smooth_l1": dict(type="mmdet.SmoothL1Loss", beta=0.11),
    "ghmr": dict(type="ghm.GHMR", momentum=0.7, loss_weight=10.0),
    "mmdets_ghmr": dict(type="mmdet.GHMR", momentum=0.7, loss_weight=10.0),
    "our_smooth_l1": dict(type="ghm.SmoothL1Loss", beta=0.11),
}
COMPARING = ("IoU", "GIoU", "DIoU", "CIoU", "EIoU", "SIoU", "BoundedIoU")  # boxes, not deltas
BOX_LOSSES |= {name: dict(type=f"mmdet.{name}Loss", loss_weight=2.0) for name in COMPARING}


def head(kind: str, cls: str, box: str) -> Any:
    torch.manual_seed(0)
    return MODELS.build(
        ConfigDict(
            type=kind,
            num_classes=CLASSES,
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            anchor_generator=dict(
                type="mmdet.AnchorGenerator",
                octave_base_scale=3,
                scales_per_octave=2,
                ratios=[1.0, 2.0],
                strides=[8, 16],
            ),
            reg_decoded_bbox=box in COMPARING,
            loss_cls=LOSSES[cls],
            loss_bbox=BOX_LOSSES[box],
            train_cfg=dict(
                assigner=dict(type="mmdet.MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
                allowed_border=-1,
                pos_weight=-1,
            ),
        )
    )


def batch(count_of_boxes: tuple[int, ...]) -> tuple[list[torch.Tensor], list[InstanceData], list[dict]]:
    torch.manual_seed(1)
    features = [torch.randn(len(count_of_boxes), 8, size, size) for size in (8, 4)]
    truth, metas = [], []
    for count in count_of_boxes:
        corner = torch.rand(count, 2) * 30
        boxes = torch.cat([corner, corner + 12 + torch.rand(count, 2) * 20], dim=1)
        truth.append(InstanceData(bboxes=boxes, labels=torch.randint(0, CLASSES, (count,))))
        metas.append(dict(img_shape=(64, 64), pad_shape=(64, 64), scale_factor=(1.0, 1.0)))
    return features, truth, metas


@pytest.mark.parametrize("count_of_boxes", [(3, 1), (0, 2), (0, 0)])
@pytest.mark.parametrize(
    ("cls", "box"),
    [
        ("focal", "smooth_l1"),
        ("our_focal", "our_smooth_l1"),
        ("ghmc", "our_smooth_l1"),
        ("ghmc", "ghmr"),
        ("softmax", "GIoU"),
        *(("our_focal", name) for name in COMPARING),
    ],
)
def test_losses_gradients_and_statistics_are_those_of_mmdets_head(cls: str, box: str, count_of_boxes: tuple[int, ...]):
    features, truth, metas = batch(count_of_boxes)
    results = []
    models = [("ghm.GHMRetinaHead", cls, box), ("mmdet.RetinaHead", cls, box)]
    if (cls, box) == ("ghmc", "ghmr"):
        models.append(("mmdet.RetinaHead", "mmdets_ghmc", "mmdets_ghmr"))
    for names in models:
        model = head(*names)
        losses: dict[str, list[torch.Tensor]] = {}
        for _ in range(3):
            model.zero_grad()
            losses = model.loss_by_feat(*model(features), truth, metas)
            counted = losses.pop("positives", [])  # to be logged, and no loss
            if counted:
                every, _ = model.examples(*model(features), Truth.of(truth, metas))
                assert torch.stack(counted).sum() == (every.label_N < CLASSES).sum()
            torch.stack([part for parts in losses.values() for part in parts]).sum().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        totals = {name: torch.stack(parts).sum() for name, parts in losses.items()}
        results.append((totals, gradients, dict(model.named_buffers())))
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-4, atol=1e-7)


def test_every_anchor_of_every_level_is_an_example():
    features, truth, metas = batch((3, 1))
    model = head("ghm.GHMRetinaHead", "ghmc", "ghmr")
    every, positives = model.examples(*model(features), Truth.of(truth, metas))
    assert every.sizes == [2 * 8 * 8 * 4, 2 * 4 * 4 * 4]
    assert positives == (every.label_N < CLASSES).sum()
    assert every.logit_NC.shape == (sum(every.sizes), CLASSES)
    for box in (every.box_N4, every.box_target_N4, every.box_weight_N4):
        assert box.shape == (sum(every.sizes), 4)


@pytest.mark.parametrize("statistics", ["level", "batch"])
def test_statistics_of_the_batch_are_one_population_of_all_levels(statistics: str):
    features, truth, metas = batch((3, 1))
    model = head("ghm.GHMRetinaHead", "ghmc", "ghmr")
    model.loss_cls = MODELS.build({**LOSSES["ghmc"], "statistics": statistics})
    losses = model.loss_by_feat(*model(features), truth, metas)
    assert len(losses["loss_cls"]) == {"level": 2, "batch": 1}[statistics]
    every, _ = model.examples(*model(features), Truth.of(truth, metas))
    whole = MODELS.build(LOSSES["ghmc"])(every.logit_NC, every.label_N, every.label_weight_N)
    assert torch.isclose(torch.stack(losses["loss_cls"]).sum(), whole) == (statistics == "batch")


def test_checkpoints_load_both_ways():
    ours, mmdets = head("ghm.GHMRetinaHead", "ghmc", "ghmr"), head("mmdet.RetinaHead", "focal", "smooth_l1")
    weights = {name: value for name, value in ours.state_dict().items() if not name.startswith("loss")}
    mmdets.load_state_dict(weights, strict=True)
    assert isinstance(ours, GHMRetinaHead)
    zoo = head("mmdet.RetinaHead", "ghmc", "ghmr")
    zoo.loss_cls, zoo.loss_bbox = MODELS.build(LOSSES["mmdets_ghmc"]), MODELS.build(BOX_LOSSES["mmdets_ghmr"])
    ours.load_state_dict(zoo.state_dict(), strict=True)
