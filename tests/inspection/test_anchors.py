"""Laws of best IoUs: those of mmdet's anchors, and of the boxes that mmdet trains on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.models.task_modules import AnchorGenerator
from mmdet.registry import DATASETS
from mmengine.registry import init_default_scope
from torchvision.ops import box_iou

from ghm import params
from ghm.data import annotations
from ghm.data.annotations import Annotations
from ghm.inspection import anchors
from ghm.inspection.anchors import PADDED, Boxes, Setting, best_iou
from ghm.params import Anchors
from ghm.training.samples import Resize
from tests.conftest import ROOT
from tests.inspection.conftest import drawn

SETTINGS = [
    Setting(Anchors(3.0, 2, (1.0, 2.0)), 3, (128, 128)),
    Setting(Anchors(4.0, 3, (0.5, 1.0, 2.0)), 5, (320, 200)),
    Setting(Anchors(0.8, 1, (0.3,)), 4, (608, 256)),
]


def mmdet_anchors(setting: Setting, image: tuple[int, int]) -> torch.Tensor:
    """All that are valid in an image of this width and height."""
    strides = [8 * 2**level for level in range(setting.levels)]
    scale: Any = setting.anchors.base_scale
    generator = AnchorGenerator(
        strides,
        ratios=list(setting.anchors.ratios),
        octave_base_scale=scale,
        scales_per_octave=setting.anchors.scales_per_octave,
    )
    width, height = (int(np.ceil(side / PADDED)) * PADDED for side in image)
    maps = [(-(-height // stride), -(-width // stride)) for stride in strides]
    return torch.cat(generator.grid_priors(maps, device="cpu"))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("side", [6.0, 40.0, 300.0])
def test_the_best_iou_is_that_with_all_anchors_of_mmdet(setting: Setting, side: float):
    boxes = drawn(200, side, spread=0.8)
    resized = boxes.resized(setting.image_scale)
    width, height = resized.image_N2[0].astype(int).tolist()
    every_A4 = mmdet_anchors(setting, (width, height)).double()
    expected = box_iou(torch.tensor(resized.corner_N4), every_A4).amax(dim=1).numpy()
    assert best_iou(boxes, setting) == pytest.approx(expected, abs=1e-5)


def test_aligned_it_is_that_of_the_shapes_and_never_lower():
    setting, boxes = SETTINGS[1], drawn(300, 50.0, spread=0.8)
    size_N2 = torch.tensor(boxes.resized(setting.image_scale).size_N2)
    shape_A2 = torch.tensor([(width, height) for _, width, height in setting.shapes()])
    centred_N4, centred_A4 = (torch.cat([-half, half], dim=1) for half in (size_N2 / 2, shape_A2 / 2))
    aligned = best_iou(boxes, setting, aligned=True)
    assert aligned == pytest.approx(box_iou(centred_N4, centred_A4.double()).amax(dim=1).numpy(), abs=1e-6)
    assert (aligned >= best_iou(boxes, setting) - 1e-12).all()


@pytest.mark.parametrize("size", [(640, 480), (333, 500), (2048, 1371), (3000, 2), (31, 32)])
@pytest.mark.parametrize("scale", [(128, 128), (333, 100)])
def test_boxes_are_resized_as_in_training(size: tuple[int, int], scale: tuple[int, int]):
    width, height = size
    corner_N4 = np.array([[0, 0, width, height], [width * 0.3, 0.5, width * 0.9, height - 0.25]])
    sample: dict[str, Any] = {"img": np.zeros((height, width, 3), np.uint8), "gt_bboxes": corner_N4.astype(np.float32)}
    expected: Any = Resize(scale=scale, keep_ratio=True)(sample)
    boxes = Boxes(corner_N4, np.array([size, size], float)).resized(scale)
    assert boxes.image_N2[0].tolist() == [expected["img_shape"][1], expected["img_shape"][0]]
    assert boxes.corner_N4 == pytest.approx(expected["gt_bboxes"], rel=1e-4, abs=1e-3)


def test_the_boxes_are_those_that_mmdet_trains_on(tmp_path: Path):
    odd = [
        {},
        {"iscrowd": 1},
        {"ignore": 1},
        {"bbox": [-9, 4, 8, 8]},
        {"bbox": [50, 4, 99, 8]},
        {"bbox": [3, 3, 0.5, 9]},
    ]
    plain = {"image_id": 7, "category_id": 2, "bbox": [5, 5, 20, 10], "area": 200, "iscrowd": 0}
    boxes = [{**plain, "id": number, **change} for number, change in enumerate(odd, start=1)]
    images = [{"id": 7, "file_name": "a.jpg", "width": 64, "height": 48}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 2, "name": "a"}]}))
    init_default_scope("mmdet")
    config = {"type": "CocoDataset", "ann_file": str(path), "metainfo": {"classes": ("a",)}, "pipeline": []}
    config["data_prefix"] = {"img": ""}
    taken = DATASETS.build(config).get_data_info(0)["instances"]
    expected = [instance["bbox"] for instance in taken if not instance["ignore_flag"]]
    found = anchors.used(annotations.read(path, Annotations)).corner_N4
    assert len(found) == 2
    assert found.tolist() == np.clip(expected, 0, [64, 48, 64, 48]).tolist()


def test_of_many_boxes_a_sample_is_measured_and_always_the_same(monkeypatch: pytest.MonkeyPatch):
    boxes = drawn(5_000, 60.0, spread=0.8)
    share = anchors.missed(boxes, SETTINGS[0])
    some = boxes.sample(1_000)
    assert len(some) == 1_000 and (some.corner_N4 == boxes.sample(1_000).corner_N4).all()
    assert anchors.missed(some, SETTINGS[0]) == pytest.approx(share, abs=4 * (share * (1 - share) / 1_000) ** 0.5)


def test_a_setting_has_the_keys_of_params_yaml():
    parameters = params.load(ROOT / "params.yaml")
    setting = Setting.of(parameters)
    assert setting.values() == {
        "model.anchors.base_scale": 3,
        "model.anchors.scales_per_octave": 2,
        "model.anchors.ratios": [1.0, 2.0],
        "model.levels": 3,
        "train.image_scale": [128, 128],
    }
