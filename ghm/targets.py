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

Shapes: B images, G boxes, M = B * G, P anchors of an image, Q = 2 * P, K columns or rows, N = B * P examples in the
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
    lane_Q: Tensor  # columns and then rows of all anchors, these counted on from those; int64
    low_2K: Tensor  # left of the anchors of each column, top of each row; the last have no end on either side
    high_2K: Tensor
    origin_2K: Tensor  # the position that they belong to, whole pixels
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
        endless_32K = torch.tensor([-torch.inf, torch.inf, -1.0])[:, None, None].repeat(1, 2, int(first_21.max()) + 1)
        span_32K = endless_32K.scatter_(2, lane_2P.expand(3, -1, -1), span_32P)
        centre_P2, size_P2 = _centre(*corner_P4.split(2, 1))
        scale_24 = torch.tensor([coder.means, coder.stds])
        lane_2P[1] += span_32K.shape[2]
        return cls(corner_P4, centre_P2, size_P2, size_P2.prod(1), lane_2P.flatten(), *span_32K, *scale_24)

    @cached_property
    def last(self) -> list[float]:
        """The largest x and y of a position. Not for a device: it would be waited for."""
        return self.origin_2K.amax(1).tolist()


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
    order_R, image_R = _order(tuple(sizes), images, state_BP.device)
    state_R, positive_N = (each_BP.view(-1).index_select(0, order_R) for each_BP in (state_BP, positive_BP))
    label_weight_N, box_weight_N4 = state_R.clamp(max=1), positive_N[:, None].expand(-1, 4)
    host, row_R = vectorised.on_host(state_BP), order_R
    if host:  # the positives are enough; to find them a device would have to be waited for
        row_R = positive_N.nonzero().squeeze(1)
        order_R, image_R, state_R = (each.index_select(0, row_R) for each in (order_R, image_R, state_R))
    # Its box among those of all images; for what stands for none any, which is mended below.
    box_R = _numbers(boxes, state_R.device)[1].index_select(0, state_R.int()).add_(image_R, alpha=boxes)
    label_N = truth.label_BG.reshape(-1).index_select(0, box_R)
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
    """Of anchors and boxes, by their places among those of an image and of all images. [R, 4]

    From tables of two columns: a GPU gives each row of 16 bytes a block of threads of its own.
    """
    corner_2M2 = truth.box_BG4.reshape(-1, 2, 2).unbind(1)
    first_R2, second_R2 = (part.index_select(0, box_R) for part in (corner_2M2 if decoded else _centre(*corner_2M2)))
    if decoded:
        return torch.cat([first_R2, second_R2], dim=1)
    centre_R2, size_R2 = (part.index_select(0, anchor_R) for part in (grid.centre_P2, grid.size_P2))
    target_R4 = torch.cat([first_R2.sub_(centre_R2).div_(size_R2), second_R2.div_(size_R2).log_()], dim=1)
    return target_R4.sub_(grid.mean_4).div_(grid.std_4)


def spread(value_P4: Tensor, sizes: Sequence[int], images: int) -> Tensor:
    """What all images share, for each example. [N, 4]"""
    return torch.cat([level for level in value_P4.split(sizes) for _ in range(images)])


@lru_cache(maxsize=4)  # 26 MB each for 16 images of 800 x 1344 with 9 anchors a position
def _order(sizes: Sequence[int], images: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each example: its place among the anchors of all images, one image after another; its image. int32, [N]"""
    place_BP = torch.arange(images * sum(sizes), dtype=torch.int32, device=device).view(images, -1)
    order_N = torch.cat([level_BP.flatten() for level_BP in place_BP.split(sizes, 1)])
    return order_N, order_N // sum(sizes)


@lru_cache(maxsize=64)
def _numbers(boxes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The numbers of the boxes of an image, for an anchor that is its best and for one whose best it is, [G, 2, 1];
    and the box of each number, int32, [2 + 2 G]."""
    number_2G = torch.arange(2, 2 + 2 * boxes, dtype=torch.float32, device=device).view(2, boxes).flip(0)
    number_2G[1] = number_2G[1].flip(0)
    box_G = torch.arange(boxes, dtype=torch.int32, device=device)
    return number_2G.t()[..., None].contiguous(), torch.cat([pad(box_G.flip(0), (2, 0)), box_G])


def _centre(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and size of boxes by their corners, all [..., 2], by the arithmetic of mmdet's `bbox2delta`."""
    return (low + high) * 0.5, high - low


def _states(truth: Truth, grid: Grid, assigner: Any) -> Tensor:
    """The number of what each anchor stands for. float32, [B, P]"""
    images, boxes = truth.label_BG.shape
    low_BG21, high_BG21 = truth.box_BG4.reshape(images, boxes, 2, 2, 1).unbind(2)
    shared_BG2K = torch.minimum(high_BG21, grid.high_2K).sub_(torch.maximum(low_BG21, grid.low_2K)).clamp_(min=0)
    # A box that is inside out shares nothing with an anchor, so any area gives IoU 0; and with one of at least 0 no
    # union is as small as mmdet's least, 1e-6.
    width_BG1, height_BG1 = shared_BG2K[..., -1:].unbind(2)
    area_BG1 = width_BG1 * height_BG1
    valid_B12K, size_B2 = None, truth.size_B2
    if not (vectorised.on_host(size_B2) and all(x > grid.last[0] and y > grid.last[1] for y, x in size_B2.tolist())):
        valid_B12K = grid.origin_2K < size_B2.flip(1)[:, None, :, None]
        shared_BG2K.mul_(valid_B12K)  # outside the valid part an IoU is 0, which is no better than any other
    blocks = [(truth.label_BG[..., None] < 0, area_BG1, shared_BG2K)]
    at_once = max(1, BLOCK // (boxes * len(grid.area_P)))
    if images > at_once:
        blocks = list(zip(*(part.split(at_once) for part in blocks[0]), strict=True))
    most_BP, number_B2P = _joined([_matches(grid, assigner, *block) for block in blocks], dim=0)
    last_BP, first_BP = number_B2P.unbind(1)
    state_BP = torch.lt(most_BP, assigner.neg_iou_thr, out=torch.empty_like(most_BP))
    state_BP.addcmul_(first_BP, most_BP.ge_(assigner.pos_iou_thr))
    torch.maximum(state_BP, last_BP, out=state_BP)
    if valid_B12K is not None:
        state_BP.mul_(valid_B12K.view(images, -1).index_select(1, grid.lane_Q).view(images, 2, -1).all(1))
    return state_BP


def _matches(grid: Grid, assigner: Any, none_BG1: Tensor, area_BG1: Tensor, shared_BG2K: Tensor) -> tuple[Tensor, ...]:
    """The best IoU of each anchor, [B, P], and its largest number of either kind, or 0, [B, 2, P].

    Args:
        none_BG1: whether there is no such box.
        area_BG1: of each box.
        shared_BG2K: the width and height that each box shares with each column and row.
    """
    at_once = max(1, BLOCK // area_BG1.numel())
    blocks = [(grid.lane_Q, grid.area_P)]
    if len(grid.area_P) > at_once:
        lanes = (lane_2P.flatten() for lane_2P in grid.lane_Q.view(2, -1).split(at_once, 1))
        blocks = list(zip(lanes, grid.area_P.split(at_once), strict=True))
    shared_MK = shared_BG2K.view(area_BG1.numel(), -1)

    def overlaps(lane_Q: Tensor, area_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Memory, [B, G, 2, P of the block], and its halves: IoU, and what may be written to."""
        both_BG2P = shared_MK.index_select(1, lane_Q).view(*area_BG1.shape[:2], 2, -1)
        iou_BGP, spare_BGP = both_BG2P.unbind(2)
        iou_BGP.mul_(spare_BGP)
        iou_BGP.div_(torch.add(area_BG1, area_P, out=spare_BGP).sub_(iou_BGP))
        return both_BG2P, iou_BGP, spare_BGP

    only = overlaps(*blocks[0]) if len(blocks) == 1 else None
    best_BG1 = reduce(torch.maximum, [(only or overlaps(*block))[1].amax(2, keepdim=True) for block in blocks])
    least = assigner.min_pos_iou if assigner.match_low_quality else NEVER
    best_BG1.masked_fill_((best_BG1 < least).logical_or_(none_BG1) if least > 0 else none_BG1, NEVER)
    number_G21, _ = _numbers(area_BG1.shape[1], area_BG1.device)
    found = []
    for block in blocks:
        both_BG2P, iou_BGP, spare_BGP = only or overlaps(*block)
        most_BP = iou_BGP.amax(1)
        torch.eq(iou_BGP, most_BP[:, None], out=spare_BGP)
        iou_BGP.eq_(best_BG1)
        found.append((most_BP, both_BG2P.mul_(number_G21).amax(1)))
    return _joined(found, dim=-1)


def _joined(parts: list[tuple[Tensor, ...]], dim: int) -> tuple[Tensor, ...]:
    return parts[0] if len(parts) == 1 else tuple(torch.cat(part, dim) for part in zip(*parts, strict=True))
