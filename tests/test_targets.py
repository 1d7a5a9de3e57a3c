"""Laws of the targets: mmdet's, bit for bit, for all images at once and without waiting for the device."""

import copy
import pickle
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from mmdet.models.dense_heads import RetinaHead
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ghm import head as head_module
from ghm import targets
from ghm.errors import InputError
from ghm.losses import ops, vectorised
from ghm.targets import Truth
from tests.heads import COCO, DIGITS, built, drawn, maps
from tests.waits import all_counted


def mmdets(head: Any, scores: list[Tensor], truth: list[InstanceData], metas: list[dict]) -> tuple[list[Tensor], int]:
    anchors, flags = head.get_anchors([tuple(level.shape[-2:]) for level in scores], metas, device="cpu")
    *levels, positives = head.get_targets(anchors, flags, truth, metas)
    return [torch.cat([level.flatten(0, 1) for level in target]) for target in levels], positives


def assert_mmdets_targets(head: Any, truth: list[InstanceData], metas: list[dict]) -> None:
    height, width = (max(meta["pad_shape"][axis] for meta in metas) for axis in (0, 1))
    scores, deltas = maps(head, len(metas), height, width)
    every, positives = head.examples(scores, deltas, Truth.of(truth, metas))
    expected, number = mmdets(head, scores, truth, metas)
    found = [every.label_N, every.label_weight_N, every.box_target_N4, every.box_weight_N4]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert positives.shape == () and positives.dtype == torch.float32 and positives == number


@settings(max_examples=300)
@given(
    seed=st.integers(0, 2**32),
    boxes=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    anchors=st.sampled_from([DIGITS, COCO, DIGITS | {"center_offset": 0.5}]),
    levels=st.integers(1, 5),
    rule=st.sampled_from(
        [
            {},
            {"min_pos_iou": 0.3},
            {"match_low_quality": False},
            {"pos_iou_thr": 0.3, "neg_iou_thr": 0.3},
            {"ignore_iof_thr": -1, "pos_iou_thr": 0.7, "neg_iou_thr": 0.05},
        ]
    ),
    decoded=st.booleans(),
    block=st.sampled_from([1, 1000, 20_000, targets.BLOCK]),
    host=st.booleans(),
)
@example(seed=0, boxes=[0], anchors=DIGITS, levels=3, rule={}, decoded=False, block=targets.BLOCK, host=True)
@example(seed=0, boxes=[0], anchors=DIGITS, levels=3, rule={}, decoded=False, block=targets.BLOCK, host=False)
@example(seed=0, boxes=[0, 0, 7], anchors=DIGITS, levels=3, rule={}, decoded=True, block=1000, host=False)
@example(seed=3, boxes=[500, 2], anchors=DIGITS, levels=2, rule={}, decoded=False, block=200_000, host=True)
def test_targets_are_those_of_mmdet_bit_for_bit(
    seed: int, boxes: list[int], anchors: dict, levels: int, rule: dict, decoded: bool, block: int, host: bool
):
    coder = dict(type="mmdet.DeltaXYWHBBoxCoder", target_means=[0.1, 0, 0, 0], target_stds=[0.1, 0.3, 0.7, 1])
    if seed % 2:
        coder |= dict(target_means=[0.0] * 4, target_stds=[1.0] * 4)
    head = built("ghmc_ghmr", anchors, levels, rule, reg_decoded_bbox=decoded, bbox_coder=coder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "BLOCK", max(block, sum(boxes)))
        patch.setattr(vectorised, "on_host", lambda _tensor: host)
        assert_mmdets_targets(head, *drawn(seed, boxes))


@pytest.mark.parametrize("block", [targets.BLOCK, 2000])
def test_in_many_images_of_the_default_model_they_are_mmdets(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(targets, "BLOCK", block)
    head = built()
    for seed in range(40):
        assert_mmdets_targets(head, *drawn(seed, [(seed + image) % 10 for image in range(8)], 128, 128))


def test_a_box_that_no_anchor_meets_takes_every_anchor_that_meets_no_box_as_in_mmdet():
    far = InstanceData(bboxes=torch.tensor([[900.0, 900.0, 910.0, 910.0]]), labels=torch.tensor([5]))
    head, metas = built(), [dict(img_shape=(64, 64), pad_shape=(64, 64))]
    scores, deltas = maps(head, 1, 64, 64)
    every, positives = head.examples(scores, deltas, Truth.of([far], metas))
    assert (every.label_N == 5).all() and positives == len(every.label_N)
    assert_mmdets_targets(head, [far], metas)


@pytest.mark.parametrize("shape", [(96, 121), (96, 120), (89, 128), (88, 128)])  # the last position is at 120, 88
def test_a_position_at_the_end_of_the_valid_part_is_outside_as_in_mmdet(shape: tuple[int, int]):
    metas = [dict(img_shape=size, pad_shape=size) for size in (shape, (96, 128))]
    assert_mmdets_targets(built(), drawn(7, [3, 2])[0], metas)


def test_a_box_inside_out_whose_area_is_that_of_an_anchor_but_negative_is_no_case_of_its_own_as_in_mmdet():
    boxes = torch.tensor([[30.0, 10.0, 6.0, 34.0], [8.0, 8.0, 30.0, 30.0]])  # anchors are of 24 x 24
    truth = InstanceData(bboxes=boxes, labels=torch.tensor([1, 2]))
    assert_mmdets_targets(built(), [truth], [dict(img_shape=(64, 64), pad_shape=(64, 64))])


def test_truth_pads_boxes_to_the_same_number_and_takes_mmdets_kind_of_boxes():
    truth, metas = drawn(0, [3, 0, 1])
    found = Truth.of(truth, metas)
    assert found.box_BG4.shape == (3, 3, 4) and found.label_BG.shape == (3, 3)
    assert (found.label_BG < 0).sum(1).tolist() == [0, 3, 2] and not found.box_BG4[found.label_BG < 0].any()
    assert found.size_B2.tolist() == [list(meta["pad_shape"][:2]) for meta in metas]
    wrapped = [InstanceData(bboxes=HorizontalBoxes(each.bboxes), labels=each.labels) for each in truth]
    assert torch.equal(Truth.of(wrapped, metas).box_BG4, found.box_BG4)
    assert Truth.of(truth[1:2], metas[1:2]).label_BG.tolist() == [[-1]]
    moved = found.to("meta")
    assert {moved.box_BG4.device.type, moved.label_BG.device.type, moved.size_B2.device.type} == {"meta"}


def test_a_truth_gives_the_losses_that_the_samples_of_mmdet_give():
    truth, metas = drawn(1, [3, 0, 2])
    samples = [
        DetDataSample(gt_instances=each, metainfo={**meta, "batch_input_shape": (96, 128)})
        for each, meta in zip(truth, metas, strict=True)
    ]
    losses = []
    for given_truth in (samples, Truth.of(truth, metas)):
        torch.manual_seed(0)
        head = built()
        features = tuple(torch.randn(3, 8, 96 // stride, 128 // stride) for stride in (8, 16, 32))
        losses.append(head.loss(features, given_truth))
    assert losses[0] == losses[1]


class OnDevice(TorchDispatchMode):
    """Counts operators, and refuses those that look at a value or copy from the host.

    Tensors of the device `meta` have no values: an operator whose result's shape depends on them raises there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []
        self.row_bytes: list[int] = []  # of the tables that are looked up

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [value for value in args if isinstance(value, Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            raise RuntimeError(f"{func} takes a tensor of the host")
        self.operators.append(str(func))
        if "index_select" in str(func):
            self.row_bytes.append(args[0][:1].nbytes)
        return func(*args, **(kwargs or {}))


def on_device(variant: str, boxes: int) -> tuple[Any, tuple[list[Tensor], list[Tensor]], Truth]:
    """A head, its maps and a truth, all without values: 16 images of COCO's size."""
    head = built(variant, COCO, 5).to("meta")
    inputs = maps(head, 16, 800, 1344, "meta")
    truth = Truth.of(*drawn(0, [boxes] * 16, 800, 1344)).to("meta")
    head.examples(*inputs, truth)  # makes the anchors, once for every shape
    return head, inputs, truth


@pytest.mark.parametrize("variant", ["ghmc_ghmr", "ghmc_sl1", "fl_sl1"])
@pytest.mark.parametrize("boxes", [7, 30])
def test_targets_and_losses_of_sixteen_images_are_few_operators(
    variant: str, boxes: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ops, "uses_kernels", lambda _tensor: True)  # as on a GPU
    head, inputs, truth = on_device(variant, boxes)
    with OnDevice() as trace:
        head._losses(*head.examples(*inputs, truth))
    assert len(trace.operators) <= 250


@pytest.mark.parametrize("decoded", [False, True])
def test_no_target_waits_for_the_device_or_takes_its_slow_way_to_look_up_rows_of_16_bytes(decoded: bool):
    head, (scores, deltas), truth = on_device("fl_sl1", 30)
    head.reg_decoded_bbox = decoded
    with OnDevice() as trace:
        head.examples(scores, deltas, truth)
    assert trace.row_bytes and all(row % 16 for row in trace.row_bytes)


@pytest.mark.parametrize("variant", ["ghmc_ghmr", "ghmc_sl1", "fl_sl1"])
def test_nothing_between_a_batch_on_the_device_and_its_losses_waits(variant: str):
    """Losses by plain PyTorch as it runs on a device. It keeps some constants of the host, so `meta` would not do."""
    head = built(variant)
    scores, deltas = ([level.requires_grad_() for level in levels] for levels in maps(head, 4, 96, 128))
    truth = Truth.of(*drawn(0, [5, 0, 30, 2]))
    head.examples(scores, deltas, truth)  # makes the anchors
    with all_counted() as count:
        losses = head._losses(*head.examples(scores, deltas, truth))
        torch.stack([*losses["loss_cls"], *losses["loss_bbox"]]).sum().backward()
    assert count.operators["aten.sigmoid.out"] and not count.waits


@pytest.mark.parametrize("variant", ["ghmc_ghmr", "fl_sl1"])
def test_the_losses_as_they_run_on_a_cpu_would_wait(variant: str, monkeypatch: pytest.MonkeyPatch):
    """Shows that the count of the law above sees what it looks for."""
    head = built(variant)
    batch = head.examples(*maps(head, 2, 96, 128), Truth.of(*drawn(0, [5, 2])))
    with all_counted() as count:
        monkeypatch.setattr(vectorised, "on_host", lambda _tensor: True)
        head._losses(*batch)
    assert count.waits["aten.nonzero.default"]


def test_mmdets_own_targets_would_wait():
    """Shows that the guard of the laws above sees what it looks for."""
    head, (scores, _), truth = on_device("ghmc_ghmr", 2)
    shapes = [tuple(level.shape[-2:]) for level in scores]
    metas = [dict(img_shape=(800, 1344), pad_shape=(800, 1344))] * 16
    instances = [
        InstanceData(bboxes=box, labels=label) for box, label in zip(truth.box_BG4, truth.label_BG, strict=True)
    ]
    with pytest.raises((RuntimeError, NotImplementedError)), OnDevice():
        head.get_targets(*head.get_anchors(shapes, metas, device="meta"), instances, metas)


def test_the_iou_of_anchors_and_boxes_is_never_whole():
    head, inputs, truth = on_device("fl_sl1", 30)

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, Tensor):
                    self.found = max(self.found, tensor.numel())
            return result

    with Largest() as trace:
        targets.assign(
            truth, head._grid(inputs[0]), [level[0].numel() // 80 for level in inputs[0]], head.assigner, 80,
            decoded=False,
        )  # fmt: skip
    assert targets.BLOCK < trace.found <= 2 * targets.BLOCK  # IoU, and as much again on the way to it


def test_anchors_of_a_shape_are_made_once_and_of_few_shapes_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(head_module, "MOST_GRIDS", 2)
    head = built()
    truth = Truth.of(*drawn(0, [2], 64, 64))
    first = maps(head, 1, 64, 64)
    head.examples(*first, truth)
    grid = head._grid(first[0])
    assert head._grid(first[0]) is grid
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(other._grid(first[0]).corner_P4, grid.corner_P4)
        assert not [name for name in other.state_dict() if "grid" in name]
    for width in (96, 128, 160):
        head.examples(*maps(head, 1, 64, width), truth)
    assert len(head._grids) == 2 and head._grid(first[0]) is not grid


@pytest.mark.parametrize(
    ("rule", "training"),
    [
        (dict(ignore_iof_thr=0.5), {}),
        (dict(gt_max_assign_all=False), {}),
        (dict(neg_iou_thr=(0.1, 0.4)), {}),
        ({}, dict(allowed_border=0)),
        ({}, dict(pos_weight=2.0)),
    ],
)
def test_other_rules_are_left_to_mmdet_and_refused_for_a_truth(rule: dict, training: dict):
    truth, metas = drawn(5, [3, 2])
    metas = [dict(img_shape=(96, 128), pad_shape=(96, 128))] * 2
    ours = built("fl_sl1", assigner=rule, train_cfg=training)
    inputs = maps(ours, 2, 96, 128)
    ignored = [InstanceData(bboxes=torch.tensor([[8.0, 8.0, 60.0, 60.0]]))] * 2
    losses = ours.loss_by_feat(*inputs, truth, metas, ignored)
    theirs = RetinaHead.loss_by_feat(ours, *inputs, truth, metas, ignored)
    for name in ("loss_cls", "loss_bbox"):
        torch.testing.assert_close(torch.stack(losses[name]).sum(), torch.stack(theirs[name]).sum())
    with pytest.raises(InputError, match="train_cfg"):
        ours.examples(*inputs, Truth.of(truth, metas))
