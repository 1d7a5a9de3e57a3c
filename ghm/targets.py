"""Which anchor stands for which box: labels, box targets and their weights for all images of a batch at once.

The rule is that of mmdet's MaxIoUAssigner, for every image by itself: an anchor whose best IoU with a box reaches
`pos_iou_thr` stands for that box, the first of equals; one whose best IoU is below `neg_iou_thr` is background; what
lies between is ignored. Then every box takes the anchors that reach its own best IoU, if that is `min_pos_iou` or more,
and the last box that asks for an anchor gets it. Anchors outside the valid part of their image take no part.

How, without a loop over images or boxes and without waiting for the device: anchors stand in columns and rows, so what
they share with a box along each axis is computed for columns and rows, and the IoU of an anchor needs one product of
the two. Anchors times boxes may be gigabytes, so that is done in blocks of images. Where one image is more than a block
its anchors are done in blocks, twice: for the best IoU of each box, and then for what each anchor stands for, a number:
0 ignored, 1 background, 1 + G - g box g of its image that is the anchor's best, 2 + G + g the box whose best the anchor
is. Of the numbers that an anchor could have the largest is its own, and all targets are looked up by that. Each
operation on a value is mmdet's, so that results are, too, bit for bit.

Shapes: B images, G boxes, M = B * G, P anchors of an image, K columns or rows of anchors, N = B * P examples in the
order of `ghm.head.Examples`, R those whose targets are looked up; 2 is x, y; 4 is left, top, right, bottom.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache, reduce
from typing import Any, Self

import torch
from mmdet.models.task_modules import AnchorGenerator, BboxOverlaps2D, DeltaXYWHBBoxCoder, MaxIoUAssigner, PseudoSampler
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from ghm.losses import vectorised

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
    centre_P2: Tensor
    size_P2: Tensor
    area_P: Tensor
    lane_211P: Tensor  # column and row, int64
    low_211K: Tensor  # left of the anchors of each column, top of each row
    high_211K: Tensor
    origin_211K: Tensor  # the position that they belong to, whole pixels
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
        centre_P2, size_P2 = _centre(corner_P4)
        scale_24 = torch.tensor([coder.means, coder.stds])
        lanes_3211K, lane_211P = span_32K[:, :, None, None], lane_2P[:, None, None]
        return cls(corner_P4, centre_P2, size_P2, size_P2.prod(1), lane_211P, *lanes_3211K, *scale_24)

    @cached_property
    def last(self) -> list[int]:
        """The largest x and y of a position. Not for a device: it would be waited for."""
        return self.origin_211K.amax((1, 2, 3)).int().tolist()


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
    positive_BP = (state_BP - 1).clamp_(0, 1)
    positives = positive_BP.sum(1).clamp_(min=1).sum()
    order_R = _order(tuple(sizes), images, state_BP.device)
    state_R, positive_N = (each_BP.view(-1).index_select(0, order_R) for each_BP in (state_BP, positive_BP))
    label_weight_N, box_weight_N4 = state_R.clamp(max=1), positive_N[:, None].expand(-1, 4)
    host, row_R = vectorised.on_host(state_BP), order_R
    if host:  # the positives are enough; to find them a device would have to be waited for
        row_R = positive_N.nonzero().squeeze(1)
        order_R, state_R = order_R.index_select(0, row_R), state_R.index_select(0, row_R)
    image_R = order_R.div(len(grid.area_P), rounding_mode="floor")
    box_R = (state_R - (boxes + 1.5)).abs_().clamp_(max=boxes - 1).int().add_(image_R, alpha=boxes)  # of all images
    label_N = truth.label_BG.view(-1).index_select(0, box_R)
    target_N4 = _box_targets(truth, grid, box_R, order_R.sub(image_R, alpha=len(grid.area_P)), decoded=decoded)
    if host:
        label_N = label_N.new_full(positive_N.shape, classes).index_copy_(0, row_R, label_N)
        target_N4 = target_N4.new_zeros(box_weight_N4.shape).index_copy_(0, row_R, target_N4)
    else:
        none_N1, box_weight_N4 = state_R[:, None] < 2, box_weight_N4.contiguous()
        label_N.masked_fill_(none_N1.squeeze(1), classes)
        target_N4.masked_fill_(none_N1, 0.0)
    return (label_N, label_weight_N, target_N4, box_weight_N4), positives


def _box_targets(truth: Truth, grid: Grid, box_R: Tensor, anchor_R: Tensor, *, decoded: bool) -> Tensor:
    """Of anchors and boxes, by their places among those of an image and of all images. [R, 4]"""
    # From tables of two columns: a GPU has a block of threads copy each row of 16 bytes.
    box_M4 = truth.box_BG4.view(-1, 4)
    first_R2, second_R2 = (part.index_select(0, box_R) for part in (box_M4.split(2, 1) if decoded else _centre(box_M4)))
    if decoded:
        return torch.cat([first_R2, second_R2], dim=1)
    centre_R2, size_R2 = (part.index_select(0, anchor_R) for part in (grid.centre_P2, grid.size_P2))
    target_R4 = torch.cat([first_R2.sub_(centre_R2).div_(size_R2), second_R2.div_(size_R2).log_()], dim=1)
    return target_R4.sub_(grid.mean_4).div_(grid.std_4)


def spread(value_P4: Tensor, sizes: Sequence[int], images: int) -> Tensor:
    """What all images share, for each example. [N, 4]"""
    return torch.cat([level for level in value_P4.split(sizes) for _ in range(images)])


@lru_cache(maxsize=4)
def _order(sizes: Sequence[int], images: int, device: torch.device) -> Tensor:
    """The place of each example among the anchors of all images, one image after another. int32, [N]"""
    place_BP = torch.arange(images * sum(sizes), dtype=torch.int32, device=device).view(images, -1)
    return torch.cat([level_BP.flatten() for level_BP in place_BP.split(sizes, 1)])


@lru_cache(maxsize=64)
def _numbers(boxes: int, device: torch.device) -> Tensor:
    """Of each box of an image, for an anchor that is its best and for one whose best it is. [2, 1, G, 1]"""
    number_2G = torch.arange(2.0, 2 + 2 * boxes, device=device).view(2, boxes)
    return torch.stack([number_2G[1], number_2G[0].flip(0)])[:, None, :, None]


def _centre(corner: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and size of boxes, both [..., 2], by the arithmetic of mmdet's `bbox2delta`."""
    low, high = corner.split(2, -1)
    return (low + high) * 0.5, high - low


def _states(truth: Truth, grid: Grid, assigner: Any) -> Tensor:
    """The number of what each anchor stands for. float32, [B, P]"""
    images, boxes = truth.label_BG.shape
    low_2BG1, high_2BG1 = truth.box_BG4.view(images, boxes, 2, 2, 1).permute(2, 3, 0, 1, 4).unbind()
    # Only a box that is inside out has an area below 0. It shares nothing with an anchor, so any area gives IoU 0; and
    # with one of at least 0 no union is as small as mmdet's least, 1e-6.
    area_BG1 = (high_2BG1 - low_2BG1).prod(0).clamp_(min=0)
    shared_2BGK = torch.minimum(high_2BG1, grid.high_211K).sub_(torch.maximum(low_2BG1, grid.low_211K)).clamp_(min=0)
    size_B2, valid_2B1K = truth.size_B2, None
    if not (vectorised.on_host(size_B2) and all(x > grid.last[0] and y > grid.last[1] for y, x in size_B2.tolist())):
        valid_2B1K = grid.origin_211K < size_B2.t().flip(0)[..., None, None]
        shared_2BGK.mul_(valid_2B1K)  # outside the valid part an IoU is 0, which is no better than any other
    blocks = [(truth.label_BG[..., None] < 0, area_BG1, shared_2BGK)]
    at_once = max(1, BLOCK // (boxes * len(grid.area_P)))
    if images > at_once:
        blocks = list(zip(*(part.split(at_once, -3) for part in blocks[0]), strict=True))
    most_BP, number_2BP = _joined([_matches(grid, assigner, *block) for block in blocks], dim=-2)
    last_BP, first_BP = number_2BP.unbind()
    state_BP = torch.lt(most_BP, assigner.neg_iou_thr, out=torch.empty_like(most_BP))
    state_BP.addcmul_(first_BP, most_BP.ge_(assigner.pos_iou_thr))
    torch.maximum(state_BP, last_BP, out=state_BP)
    if valid_2B1K is not None:
        state_BP.mul_(valid_2B1K.gather(3, grid.lane_211P.expand(-1, images, -1, -1)).all(0).squeeze(1))
    return state_BP


def _matches(grid: Grid, assigner: Any, none_BG1: Tensor, area_BG1: Tensor, shared_2BGK: Tensor) -> tuple[Tensor, ...]:
    """The best IoU of each anchor, [B, P], and its largest number of either kind, or 0, [2, B, P].

    Args:
        none_BG1: whether there is no such box.
        area_BG1: of each box.
        shared_2BGK: the width and height that each box shares with each column and row.
    """
    at_once = max(1, BLOCK // area_BG1.numel())
    blocks = [(grid.lane_211P, grid.area_P)]
    if len(grid.area_P) > at_once:
        blocks = list(zip(*(part.split(at_once, -1) for part in blocks[0]), strict=True))

    def overlaps(lane_211P: Tensor, area_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Memory, [2, B, G, P of the block], and its halves: IoU, and what may be written to."""
        both_2BGP = shared_2BGK.gather(3, lane_211P.expand(-1, *area_BG1.shape[:2], -1))
        iou_BGP, spare_BGP = both_2BGP.unbind()
        iou_BGP.mul_(spare_BGP)
        iou_BGP.div_(torch.add(area_BG1, area_P, out=spare_BGP).sub_(iou_BGP))
        return both_2BGP, iou_BGP, spare_BGP

    only = overlaps(*blocks[0]) if len(blocks) == 1 else None
    best_BG1 = reduce(torch.maximum, [(only or overlaps(*block))[1].amax(2, keepdim=True) for block in blocks])
    least = assigner.min_pos_iou if assigner.match_low_quality else NEVER
    best_BG1.masked_fill_((best_BG1 < least).logical_or_(none_BG1) if least > 0 else none_BG1, NEVER)
    number_21G1 = _numbers(area_BG1.shape[1], area_BG1.device)
    found = []
    for block in blocks:
        both_2BGP, iou_BGP, spare_BGP = only or overlaps(*block)
        most_BP = iou_BGP.amax(1)
        torch.eq(iou_BGP, most_BP[:, None], out=spare_BGP)
        iou_BGP.eq_(best_BG1)
        found.append((most_BP, both_2BGP.mul_(number_21G1).amax(2)))
    return _joined(found, dim=-1)


def _joined(parts: list[tuple[Tensor, ...]], dim: int) -> tuple[Tensor, ...]:
    return parts[0] if len(parts) == 1 else tuple(torch.cat(part, dim) for part in zip(*parts, strict=True))
