"""RetinaNet heads, what they give for an input, and true boxes of all kinds.

Shapes: N boxes of an image.
"""

from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

CLASSES = 80
LOSSES = {
    "ghmc": dict(type="ghm.GHMC", bins=30, momentum=0.75, use_sigmoid=True),
    "ghmr": dict(type="ghm.GHMR", bins=10, momentum=0.7, loss_weight=10.0),
    "fl": dict(type="ghm.FocalLoss", use_sigmoid=True),
    "sl1": dict(type="ghm.SmoothL1Loss", beta=0.11),
}
COCO = dict(octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0])
DIGITS = dict(octave_base_scale=3, scales_per_octave=2, ratios=[1.0, 2.0])


def built(
    variant: str = "ghmc_ghmr", anchors: dict = DIGITS, levels: int = 3, assigner: dict | None = None, **rest: Any
) -> Any:
    cls, box = variant.split("_")
    rule = dict(type="mmdet.MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0)
    training = dict(assigner=rule | (assigner or {}), allowed_border=-1, pos_weight=-1)
    training |= rest.pop("train_cfg", {})
    return MODELS.build(
        ConfigDict(
            type="ghm.GHMRetinaHead",
            num_classes=CLASSES,
            in_channels=8,
            feat_channels=8,
            stacked_convs=0,
            anchor_generator=dict(
                type="mmdet.AnchorGenerator", strides=[8 * 2**level for level in range(levels)], **anchors
            ),
            loss_cls=LOSSES[cls],
            loss_bbox=LOSSES[box],
            train_cfg=training,
            **rest,
        )
    )


def maps(head: Any, images: int, height: int, width: int, device: str = "cpu") -> tuple[list[Tensor], list[Tensor]]:
    """What the head gives for an input of this size."""
    strides = [stride for stride, _ in head.prior_generator.strides]
    shapes = [(-(-height // stride), -(-width // stride)) for stride in strides]

    def levels(channels: int) -> list[Tensor]:
        sizes = [(images, head.num_base_priors * channels, *shape) for shape in shapes]
        return [torch.randn(size, device=device).to(memory_format=torch.channels_last) for size in sizes]

    return levels(head.cls_out_channels), levels(4)


def drawn(seed: int, boxes: list[int], height: int = 96, width: int = 128) -> tuple[list[Any], list[dict]]:
    """Images with boxes of all kinds: tied, doubled, outside, without area, inside out, of one pixel and of all."""
    random = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random)

    truth, metas = [], []
    for count in boxes:
        size_2 = torch.tensor([width, height])
        corner_N2 = (uniform(count, 2) * 1.5 - 0.25) * size_2
        side_N2 = size_2 * uniform(count, 2) ** 3
        kind_N1 = torch.randint(8, (count, 1), generator=random)
        corner_N2 = torch.where(kind_N1 == 0, (corner_N2 / 4).round() * 4, corner_N2)
        side_N2 = torch.where(kind_N1 == 0, (side_N2 / 8).round() * 8, side_N2)
        side_N2 = torch.where(kind_N1 == 1, 1.0, side_N2)
        side_N2 = torch.where(kind_N1 == 2, side_N2 * torch.tensor([1.0, 0.0]), side_N2)
        corner_N2 = torch.where(kind_N1 == 3, corner_N2 + 4 * size_2, corner_N2)
        side_N2 = torch.where((kind_N1 == 4) & (uniform(count, 1) < 0.2), -side_N2, side_N2)
        box_N4 = torch.cat([corner_N2, corner_N2 + side_N2], dim=1)
        if count > 1 and uniform(1) < 0.5:
            box_N4[-1] = box_N4[0]
        truth.append(InstanceData(bboxes=box_N4, labels=torch.randint(CLASSES, (count,), generator=random)))
        shape = ((1 - uniform(2) * (uniform(1) < 0.5)) * torch.tensor([height, width])).ceil().int().tolist()
        metas.append(dict(img_shape=tuple(shape), pad_shape=(*shape, 3)))
    return truth, metas
