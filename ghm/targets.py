"""Which anchor stands for which box: labels, box targets and their weights for all images of a batch at once.

The rule is that of mmdet's MaxIoUAssigner, for every image by itself: an anchor whose best IoU with a box reaches
`pos_iou_thr` stands for that box, the first of equals; one whose best IoU is below `neg_iou_thr` is background; what
lies between is ignored. Then every box takes the anchors that reach its own best IoU, if that is `min_pos_iou` or more,
and the last box that asks for an anchor gets it. Anchors outside the valid part of their image take no part.

How, without a loop over images or boxes and without waiting for the device: anchors stand in columns and rows, so what
they share with a box along each axis is computed for columns and rows, and the IoU of an anchor needs one product of
the two. Anchors times boxes may be gigabytes, so that is done in blocks of images. Where one image is more than a block
its anchors are done in blocks, twice: for the best IoU of each box, and then for what each anchor stands for, a number:
0 ignored, 1 background, 2 + g box g of its image. All targets are looked up by that number. Each operation on a value
is mmdet's, so that results are, too, bit for bit.

Shapes: B images, G boxes, M = B * G, P anchors of an image, K columns or rows of anchors, N = B * P examples in the
order of `ghm.head.Examples`; 2 is x, y; 4 is left, top, right, bottom, or centre x, y, width, height where so named.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from mmdet.models.task_modules import AnchorGenerator, BboxOverlaps2D, DeltaXYWHBBoxCoder, MaxIoUAssigner, PseudoSampler
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

BLOCK = 40_000_000  # pairs of an anchor and a box at once: 160 MB of IoU, and as much again on the way to it
NEVER = 2.0  # an IoU that nothing has


@dataclass(frozen=True, eq=False)
class _Tensors:
    """A dataclass of tensors that moves as one."""

    def to(self, device: torch.device | str) -> Self:
        """The same on another device; the copies do not block where the memory is pinned."""
        return type(self)(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def pin_memory(self) -> Self:
        """The same in memory from which copies to a GPU need not block: what DataLoader asks for."""
        return type(self)(*(getattr(self, field.name).pin_memory() for field in fields(self)))


@dataclass(frozen=True, eq=False)
class Truth(_Tensors):
    """The true boxes of a batch, padded to the same number of boxes per image, at least 1."""

    box_BG4: Tensor  # float32, in pixels of the input; zeros past an image's own boxes
    label_BG: Tensor  # int64, 0..C-1; -1 past an image's own boxes
    size_B2: Tensor  # int64, height and width of each image's valid part of the input: mmdet's `pad_shape`

    @classmethod
    def of(cls, instances: Sequence[Any], metas: Sequence[dict]) -> "Truth":
        """From mmdet's `gt_instances` and `metainfo` of each image; boxes to be ignored are not in the former."""
        boxes = [get_box_tensor(objects.bboxes).float() for objects in instances]
        box_BG4 = pad_sequence(boxes, batch_first=True)
        label_BG = pad_sequence([objects.labels.long() for objects in instances], batch_first=True, padding_value=-1)
        if box_BG4.shape[1] == 0:
            box_BG4, label_BG = pad(box_BG4, (0, 0, 0, 1)), pad(label_BG, (0, 1), value=-1)
        size_B2 = torch.tensor([meta["pad_shape"][:2] for meta in metas], dtype=torch.int64)
        return cls(box_BG4, label_BG, size_B2.to(box_BG4.device, non_blocking=True))


@dataclass(frozen=True, eq=False)
class Grid(_Tensors):
    """The anchors of all levels of a pyramid, level after level, and the columns and rows in which they stand.

    None may be without area.
    """

    corner_P4: Tensor
    centre_P4: Tensor  # centre x, y, width, height
    area_P: Tensor
    column_P: Tensor  # int64
    row_P: Tensor
    low_21K: Tensor  # left of the anchors of each column, top of each row
    high_21K: Tensor
    origin_21K: Tensor  # the position that they belong to, whole pixels
    mean_4: Tensor  # of the coder of boxes
    std_4: Tensor

    @classmethod
    def of(cls, generator: AnchorGenerator, coder: DeltaXYWHBBoxCoder, shapes: list[tuple[int, int]]) -> "Grid":
        """The anchors that `generator` puts into levels of these heights and widths."""
        corner_P4 = torch.cat([get_box_tensor(level) for level in generator.grid_priors(shapes, device="cpu")])
        lanes, origins, first_21 = [], [], torch.zeros(2, 1, dtype=torch.int64)
        for (height, width), stride, kinds in zip(shapes, generator.strides, generator.num_base_priors, strict=True):
            y, x, kind = torch.meshgrid(*map(torch.arange, (height, width, kinds)), indexing="ij")
            position_2P = torch.stack([x, y]).flatten(1)
            lanes.append(first_21 + position_2P * kinds + kind.flatten())
            origins.append(position_2P * torch.tensor(stride)[:, None])
            first_21 = first_21 + torch.tensor([[width], [height]]) * kinds
        lane_2P, origin_2P = torch.cat(lanes, dim=1), torch.cat(origins, dim=1)
        span_32P = torch.cat([corner_P4.t().reshape(2, 2, -1), origin_2P[None]])  # all of a lane have the same
        span_32K = torch.zeros(3, 2, int(first_21.max())).scatter_(2, lane_2P.expand(3, -1, -1), span_32P)
        centre_P4, scale_24 = _centre(corner_P4), torch.tensor([coder.means, coder.stds])
        return cls(corner_P4, centre_P4, centre_P4[:, 2:].prod(1), *lane_2P, *span_32K[:, :, None], *scale_24)


def covers(head: Any) -> bool:
    """Whether `assign` does what an anchor head of mmdet is configured to do."""
    assigner, calculator = head.assigner, getattr(head.assigner, "iou_calculator", None)
    kinds = [(assigner, MaxIoUAssigner), (calculator, BboxOverlaps2D), (head.sampler, PseudoSampler)]
    kinds += [(head.bbox_coder, DeltaXYWHBBoxCoder), (head.prior_generator, AnchorGenerator)]
    return (
        all(type(part) is kind for part, kind in kinds)
        and isinstance(assigner.neg_iou_thr, float)
        and 0 < assigner.neg_iou_thr <= assigner.pos_iou_thr
        and assigner.gt_max_assign_all
        and assigner.ignore_iof_thr <= 0
        and assigner.perm_repeat_gt_cfg is None
        and getattr(calculator, "dtype", None) is None
        and head.train_cfg["allowed_border"] < 0
        and head.train_cfg["pos_weight"] <= 0
    )


def assign(
    truth: Truth, grid: Grid, sizes: list[int], assigner: MaxIoUAssigner, classes: int, *, decoded: bool
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Targets of all anchors, for a head that `covers` accepts.

    Args:
        sizes: anchors of each level of an image.
        classes: C, the label of what is background or ignored.
        decoded: box targets are boxes in pixels, not encoded deltas.

    Returns:
        Labels [N], their weights [N], box targets [N, 4] and their weights [N, 4]; and what mmdet divides losses by:
        the sum over images of their positive anchors, at least 1 each, float32, [].
    """
    state_BP = _states(truth, grid, assigner)
    images, boxes = truth.label_BG.shape
    positives = (state_BP > 1).sum(1, dtype=torch.float32).clamp_(min=1).sum()
    state_BP += torch.arange(0, images * (2 + boxes), 2 + boxes, device=state_BP.device)[:, None]
    place_N = torch.cat([image for level_BP in state_BP.split(sizes, 1) for image in level_BP.unbind()])
    state_N = place_N % (2 + boxes)
    positive_N4 = (state_N > 1)[:, None].expand(-1, 4).to(torch.float32, memory_format=torch.contiguous_format)
    label_N = pad(truth.label_BG, (2, 0), value=classes).view(-1).index_select(0, place_N)
    # What is not positive has a box of size 1, whose deltas are finite, until they are set to 0.
    box_BG4 = pad(truth.box_BG4, (0, 0, 2, 0)) if decoded else pad(_centre(truth.box_BG4), (0, 0, 2, 0), value=1.0)
    target_N4 = box_BG4.flatten(0, 1).index_select(0, place_N)
    if not decoded:
        anchor_centre_N2, anchor_size_N2 = spread(grid.centre_P4, sizes, images).split(2, 1)
        centre_N2, size_N2 = target_N4.split(2, 1)
        shift_N2 = (centre_N2 - anchor_centre_N2).div_(anchor_size_N2)
        target_N4 = torch.cat([shift_N2, (size_N2 / anchor_size_N2).log_()], dim=1)
        target_N4.sub_(grid.mean_4).div_(grid.std_4).mul_(positive_N4)
    return (label_N, (state_N > 0).float(), target_N4, positive_N4), positives


def spread(value_P4: Tensor, sizes: list[int], images: int) -> Tensor:
    """What all images share, for each example. [N, 4]"""
    return torch.cat([level for level in value_P4.split(sizes) for _ in range(images)])


def _centre(corner: Tensor) -> Tensor:
    """Centre and size of boxes, [..., 4], by the arithmetic of mmdet's `bbox2delta`."""
    low, high = corner.split(2, -1)
    return torch.cat([(low + high) * 0.5, high - low], dim=-1)


def _states(truth: Truth, grid: Grid, assigner: Any) -> Tensor:
    """What each anchor stands for: 0 ignored, 1 background, 2 + g box g of its image. int64, [B, P]"""
    images, boxes = truth.label_BG.shape
    low_2M1, high_2M1 = truth.box_BG4.reshape(-1, 2, 2, 1).permute(1, 2, 0, 3).unbind()
    # Only a box that is inside out has an area below 0. It shares nothing with an anchor, so any area gives IoU 0; and
    # with one of at least 0 no union is as small as mmdet's least, 1e-6.
    area_M1 = (high_2M1 - low_2M1).prod(0).clamp_(min=0)
    shared_2MK = torch.minimum(high_2M1, grid.high_21K).sub_(torch.maximum(low_2M1, grid.low_21K)).clamp_(min=0)
    valid_2BK = grid.origin_21K < truth.size_B2.t().flip(0)[..., None]
    # Outside the valid part an IoU is 0, which is no better than any other.
    shared_2MK.view(2, images, boxes, -1).mul_(valid_2BK[:, :, None])
    number_G = torch.arange(2, 2 + boxes, dtype=torch.float32, device=area_M1.device)
    number_BG1 = (number_G * (truth.label_BG >= 0))[..., None]
    at_once = max(1, BLOCK // (boxes * len(grid.area_P)))
    parts = zip(
        number_BG1.split(at_once),
        *(part.split(at_once * boxes) for part in (area_M1, *shared_2MK.unbind())),
        strict=True,
    )
    most_BP, which_BP, last_BP = _joined([_matches(grid, assigner, *part) for part in parts], dim=0)
    state_BP = which_BP.add_(2).mul_(most_BP >= assigner.pos_iou_thr).add_(most_BP < assigner.neg_iou_thr)
    state_BP = torch.where(last_BP > 0, last_BP.long(), state_BP)
    valid_x_BK, valid_y_BK = valid_2BK.long().unbind()
    return state_BP.mul_(valid_x_BK.index_select(1, grid.column_P)).mul_(valid_y_BK.index_select(1, grid.row_P))


def _matches(
    grid: Grid, assigner: Any, number_BG1: Tensor, area_M1: Tensor, width_MK: Tensor, height_MK: Tensor
) -> tuple[Tensor, ...]:
    """The best IoU of each anchor, its first box of that, and the last number of a box whose best it is, or 0. [B, P]

    Args:
        number_BG1: of each box; 0 for what is none.
        area_M1: of each box.
        width_MK, height_MK: what each box shares with each column and row.
    """
    at_once = max(1, BLOCK // len(area_M1))
    blocks: list[tuple[Tensor, ...]] = [(grid.column_P, grid.row_P, grid.area_P)]
    if len(grid.area_P) > at_once:
        blocks = list(zip(*(part.split(at_once) for part in blocks[0]), strict=True))

    def overlaps(column_P: Tensor, row_P: Tensor, area_P: Tensor) -> Tensor:
        """IoU, [B, G, P of the block]."""
        common_MP = width_MK.index_select(1, column_P).mul_(height_MK.index_select(1, row_P))
        return common_MP.div_((area_M1 + area_P).sub_(common_MP)).view(*number_BG1.shape[:2], -1)

    only = overlaps(*blocks[0]) if len(blocks) == 1 else None
    bests = [(overlaps(*block) if only is None else only).amax(2, keepdim=True) for block in blocks]
    best_BG1 = functools.reduce(torch.maximum, bests)
    least = assigner.min_pos_iou if assigner.match_low_quality else NEVER
    if least > 0:
        best_BG1.masked_fill_(best_BG1 < least, NEVER)
    found = []
    for block in blocks:
        iou_BGP = overlaps(*block) if only is None else only
        most_BP, which_BP = iou_BGP.max(1)
        found.append((most_BP, which_BP, iou_BGP.eq_(best_BG1).mul_(number_BG1).amax(1)))
    return _joined(found, dim=1)


def _joined(parts: list[tuple[Tensor, ...]], dim: int) -> tuple[Tensor, ...]:
    return parts[0] if len(parts) == 1 else tuple(torch.cat(part, dim) for part in zip(*parts, strict=True))
