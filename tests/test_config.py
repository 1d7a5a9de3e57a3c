"""Laws of the config that mmengine gets."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import CosineAnnealingLR, LinearLR, MultiStepLR
from mmengine.registry import init_default_scope
from ruamel.yaml import YAML

from ghm import config, params, presets
from ghm.errors import InputError
from tests.conftest import ROOT

MANIFEST = {
    "name": "coco",
    "classes": [f"class {number}" for number in range(80)],
    "splits": {
        name: {
            "images": 118287,
            "images_without_boxes": 1021,
            "annotations": f"annotations/instances_{name}2017.json",
            "folder": f"{name}2017",
        }
        for name in ("train", "val", "test")
    },
}


def with_losses(**sections: Any) -> params.Params:
    raw = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    cls, box = sections.pop("cls", "focal"), sections.pop("box", "smooth_l1")
    return params.parse({**raw, **sections, "variants": {"tried": {"cls": cls, "box": box}}})


def build(parameters: params.Params, variant: str = "tried") -> Config:
    return config.build(parameters, variant, MANIFEST, None, seed=0)


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> params.Params:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    monkeypatch.chdir(tmp_path)
    presets.apply("coco_r50_1x")
    return params.load()


def test_the_coco_preset_is_the_published_setting(coco: params.Params):
    built = build(coco, "ghmc_ghmr")
    head, train = built.model.bbox_head, built.train_dataloader
    off = dict(statistics="level", normalizer="valid_bins", smoothing=0.0)
    off |= dict.fromkeys(("sync", "bias_correction"), False)
    ghmc = dict(type="ghm.GHMC", bins=30, momentum=0.75, use_sigmoid=True, loss_weight=1.0)
    assert dict(head.loss_cls) == ghmc | off
    ghmr = dict(type="ghm.GHMR", mu=0.02, bins=10, momentum=0.7, loss_weight=10.0)
    assert dict(head.loss_bbox) == ghmr | off
    assert (head.stacked_convs, head.feat_channels, head.norm_cfg) == (4, 256, None)
    assert head.anchor_generator.strides == [8, 16, 32, 64, 128]
    assert (head.anchor_generator.octave_base_scale, head.anchor_generator.scales_per_octave) == (4, 3)
    assert built.model.neck.in_channels == [256, 512, 1024, 2048]
    assert (built.model.backbone.frozen_stages, built.model.backbone.norm_eval) == (1, True)
    assert (train.batch_size, train.dataset.dataset.filter_cfg.filter_empty_gt) == (16, True)
    assert dict(built.optimizer) == dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=0.0001, fused=True)
    assert built.grad_clip == 35
    schedule = dict(type="step", lr=0.01, lr_steps=[8, 11], warmup_iters=500, warmup_ratio=0.3333, epochs=12)
    assert dict(built.schedule) == schedule | {"steps": 7330}  # 117,266 images with boxes, 16 at once
    assert train.dataset.dataset.pipeline[2].scale == (1333, 800)


@pytest.mark.parametrize(("batch_size", "base", "expected"), [(16, 16, 0.01), (4, 16, 0.0025), (4, None, 0.01)])
def test_the_learning_rate_follows_the_images_a_step_unless_that_is_off(
    coco: params.Params, batch_size: int, base: int | None, expected: float
):
    parameters = replace(coco, train=replace(coco.train, batch_size=batch_size, base_batch_size=base))
    assert build(parameters, "fl_sl1").optimizer.lr == expected


RESIZE = {"type": "RandomResize", "scale": [[1333, 640], [1333, 800]], "keep_ratio": True}


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        ((), ["ghm.Resize"]),
        (({"type": "PhotoMetricDistortion"},), ["ghm.Augment", "ghm.Resize"]),
        ((RESIZE, {"type": "RandomCrop", "crop_size": [600, 600]}), ["ghm.Augment"]),
        (({"type": "torchvision.RandomShortestSize", "min_size": [600, 800]},), ["ghm.Augment"]),
    ],
)
def test_a_transform_that_resizes_takes_the_place_of_the_resizing(
    coco: params.Params, augment: tuple[dict[str, Any], ...], expected: list[str]
):
    parameters = replace(coco, train=replace(coco.train, augment=augment))
    pipeline = build(parameters, "fl_sl1").train_dataloader.dataset.dataset.pipeline
    names = [step.type for step in pipeline]
    assert names == ["ghm.LoadImage", "LoadAnnotations", *expected, "RandomFlip", "ghm.Pack"]
    if RESIZE in augment:
        assert pipeline[2].transforms[0].scale == [(1333, 640), (1333, 800)]  # tuples, which mmdet asks for
    tested = build(parameters, "fl_sl1").test_dataloader.dataset.dataset.pipeline
    assert [step.type for step in tested] == ["ghm.LoadImage", "ghm.Resize", "PackDetInputs"]


def test_options_reach_the_optimiser_beside_what_it_has_anyway(coco: params.Params):
    parameters = replace(coco, train=replace(coco.train, optimizer_options={"nesterov": True, "momentum": 0.8}))
    group = build(parameters, "fl_sl1").optimizer
    assert (group["nesterov"], group["momentum"], group["lr"], group["weight_decay"]) == (True, 0.8, 0.01, 0.0001)


@given(
    warmup=st.integers(0, 9),
    schedule=st.sampled_from([("cosine", ()), ("step", (1, 3))]),
    steps=st.integers(1, 7),
    ratio=st.sampled_from([0.1, 0.3333, 1.0]),
)
def test_the_learning_rate_is_that_of_mmengines_schedulers(
    warmup: int, schedule: tuple[str, tuple[int, ...]], steps: int, ratio: float
):
    epochs = 4
    settings = dict(type=schedule[0], lr_steps=schedule[1], epochs=epochs, steps=steps)
    settings |= dict(lr=0.02, warmup_iters=warmup, warmup_ratio=ratio)
    optimizer = torch.optim.SGD([torch.ones(1)], lr=0.02)
    theirs: list[Any] = []
    if warmup > 1:  # mmengine's divides by warmup - 1
        theirs.append(LinearLR(optimizer, start_factor=ratio, by_epoch=False, begin=0, end=warmup))
    if schedule[0] == "cosine":
        theirs.append(CosineAnnealingLR(optimizer, T_max=epochs * steps, by_epoch=False))
    else:
        theirs.append(MultiStepLR(optimizer, milestones=list(schedule[1]), by_epoch=True))
    for step in range(epochs * steps):
        if warmup != 1:
            assert config.learning_rate(settings, step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        for each in theirs:
            if not each.by_epoch or (step + 1) % steps == 0:
                each.step()


def test_the_larger_coco_presets_change_nothing_but_the_backbone(coco: params.Params):
    built = [build(coco, "ghmc_ghmr").to_dict()]
    for name in ("coco_r101_1x", "coco_x101_64x4d_1x"):
        presets.apply(name)
        built.append(build(params.load(), "ghmc_ghmr").to_dict())
    backbones = [cfg["model"].pop("backbone") for cfg in built]
    kinds = [(backbone["type"], backbone["depth"]) for backbone in backbones]
    assert kinds == [("mmdet.ResNet", 50), ("mmdet.ResNet", 101), ("mmdet.ResNeXt", 101)]
    assert (backbones[2]["groups"], backbones[2]["base_width"]) == (64, 4)
    assert built[0] == built[1] == built[2]


def test_every_variant_of_the_default_builds_a_detector():
    parameters = params.load(ROOT / "params.yaml")
    init_default_scope("mmdet")
    for name in parameters.variants:
        detector = MODELS.build(build(parameters, name).model)
        assert detector.bbox_head.num_classes == 80


def test_any_registered_loss_is_a_section_away_and_the_head_is_told_how_many_logits_it_takes():
    for section, sigmoid in (("focal", True), ("softmax", False), ("cross_entropy", True)):
        head = build(with_losses(softmax={"type": "CrossEntropyLoss"}, cls=section)).model.bbox_head
        assert head.loss_cls.use_sigmoid == sigmoid
        assert "use_sigmoid" not in head.loss_bbox and not head.reg_decoded_bbox
    with pytest.raises(InputError, match="variants.tried.cls must be a loss for cls"):
        build(with_losses(cls="smooth_l1"))


def test_losses_that_compare_boxes_get_boxes_and_all_others_deltas():
    losses = {
        name: cls for name, cls in MODELS.module_dict.items() if cls.__module__.startswith("mmdet.models.losses.")
    }
    comparing = {name for name, cls in losses.items() if cls.__module__.endswith(".iou_loss")}
    assert {"GIoULoss", "DIoULoss", "CIoULoss", "EIoULoss", "SIoULoss", "BoundedIoULoss", "IoULoss"} <= comparing
    for name in (*comparing, "SmoothL1Loss", "L1Loss", "BalancedL1Loss", "MSELoss", "mmdet.GIoULoss"):
        is_decoded = build(with_losses(tried={"type": name}, box="tried")).model.bbox_head.reg_decoded_bbox
        assert is_decoded == (name.removeprefix("mmdet.") in comparing), name
    assert build(with_losses(box="giou")).model.bbox_head.loss_bbox == {"type": "GIoULoss", "loss_weight": 2.0}


def test_a_training_split_without_boxes_is_refused_where_empty_images_are_left_out():
    parameters = with_losses()
    parameters = replace(parameters, train=replace(parameters.train, filter_empty=True))
    empty = {**MANIFEST["splits"], "train": {**MANIFEST["splits"]["train"], "images_without_boxes": 118287}}
    with pytest.raises(InputError, match="has no image with a box"):
        config.build(parameters, "tried", {**MANIFEST, "splits": empty}, None, seed=0)
