"""`Params` -> mmengine `Config`. The only place that writes mmdet config."""

from math import ceil, cos, pi
from pathlib import Path
from typing import Any, get_args

import mmdet.models  # noqa: F401  (registers its models)
from mmengine.config import Config

from ghm import augment, check
from ghm.errors import InputError
from ghm.params import GROUPS, Model, Params, Role, Train

BACKBONES: dict[str, dict[str, Any]] = {
    "resnet18": dict(type="mmdet.ResNet", depth=18),
    "resnet34": dict(type="mmdet.ResNet", depth=34),
    "resnet50": dict(type="mmdet.ResNet", depth=50),
    "resnet101": dict(type="mmdet.ResNet", depth=101),
    "resnext101_32x4d": dict(type="mmdet.ResNeXt", depth=101, groups=32, base_width=4),
    "resnext101_64x4d": dict(type="mmdet.ResNeXt", depth=101, groups=64, base_width=4),
}


def build(params: Params, variant: str, manifest: dict[str, Any], weights: Path | None, seed: int) -> Config:
    """Write the config of one training run of `variant` and of its evaluation.

    Args:
        manifest: of the data set, for its classes and files.
        weights: the pretrained backbone, None to start from random weights.

    Raises:
        InputError: a loss is for the other role, is unknown, or has wrong arguments.
    """
    return Config(
        dict(
            default_scope="mmdet",
            custom_imports=dict(imports=["ghm"]),
            model=_detector(params, variant, len(manifest["classes"]), weights),
            **_training(params, manifest, seed),
            **_testing(params, manifest),
            randomness=dict(seed=seed),
            log_level="WARNING",
            visualizer=dict(type="Visualizer", vis_backends=None),
            load_from=None,
        )
    )


def for_run(params: Params, variant: str, seed: int) -> Config:
    """The config of one training run and its evaluation, from what the stages `data` and `backbone` left."""
    from ghm import backbones, data  # which build a backbone by this module

    return build(params, variant, data.read_manifest(params), backbones.weights_path(params), seed)


def backbone(model: Model) -> dict[str, Any]:
    """The ResNet or ResNeXt of `model`, without its weights."""
    return dict(
        BACKBONES[model.backbone],
        base_channels=model.base_channels,
        frozen_stages=model.frozen_stages,
        norm_eval=model.norm_eval,
        norm_cfg=dict(type="BN", requires_grad=True),
        init_cfg=None,
    )


def preprocessor() -> dict[str, Any]:
    """ImageNet's mean and spread of R, G, B: what pretrained backbones expect."""
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    return dict(type="DetDataPreprocessor", mean=mean, std=std, bgr_to_rgb=True, pad_size_divisor=32)


def steps(train: Train, manifest: dict[str, Any]) -> int:
    """How many steps an epoch has. Raises InputError where no image is left to train on."""
    split = manifest["splits"]["train"]
    images = split["images"] - (split["images_without_boxes"] if train.filter_empty else 0)
    if images < 1:
        raise InputError(f"the training split of {manifest['name']} has no image with a box, so nothing can be learned")
    return ceil(images / train.batch_size)


def _detector(params: Params, variant: str, classes: int, weights: Path | None) -> dict[str, Any]:
    model, evaluate = params.model, params.evaluate
    expansion = 4 if BACKBONES[model.backbone]["depth"] >= 50 else 1
    init = dict(type="Pretrained", checkpoint=str(weights)) if weights else None
    return dict(
        type="RetinaNet",
        data_preprocessor=preprocessor(),
        backbone=dict(backbone(model), init_cfg=init),
        neck=dict(
            type="FPN",
            in_channels=[model.base_channels * expansion * 2**stage for stage in range(4)],
            out_channels=model.fpn_channels,
            start_level=1,
            add_extra_convs="on_input",
            num_outs=model.levels,
        ),
        bbox_head=_head(params, variant, classes),
        train_cfg=dict(
            assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        test_cfg=dict(
            nms_pre=1000,
            min_bbox_size=0,
            score_thr=evaluate.score_threshold,
            nms=dict(type="nms", iou_threshold=evaluate.nms_iou),
            max_per_img=evaluate.max_per_image,
        ),
    )


def _head(params: Params, variant: str, classes: int) -> dict[str, Any]:
    model = params.model
    losses: dict[Role, dict[str, Any]] = {}
    for role in get_args(Role):
        module, loss = check.build(params, variant, role), params.loss(variant, role)
        losses[role] = dict(loss.arguments, type=loss.type)
        if role == "cls":  # mmdet's head reads in the config whether the loss takes one logit per class
            losses[role]["use_sigmoid"] = module.use_sigmoid
    norms = {"GN": dict(type="ghm.GroupNorm", num_groups=GROUPS), "BN": dict(type="BN"), None: None}
    return dict(
        type="ghm.GHMRetinaHead",
        num_classes=classes,
        in_channels=model.fpn_channels,
        feat_channels=model.head_channels,
        stacked_convs=model.stacked_convs,
        norm_cfg=norms[model.head_norm],
        anchor_generator=dict(
            type="AnchorGenerator",
            octave_base_scale=model.anchors.base_scale,
            scales_per_octave=model.anchors.scales_per_octave,
            ratios=list(model.anchors.ratios),
            strides=[8 * 2**level for level in range(model.levels)],
        ),
        reg_decoded_bbox=losses["box"]["type"].endswith("IoULoss"),  # these compare boxes, the others deltas
        loss_cls=losses["cls"],
        loss_bbox=losses["box"],
    )


def _training(params: Params, manifest: dict[str, Any], seed: int) -> dict[str, Any]:
    train = params.train
    pipeline = [
        dict(type="ghm.LoadImage"),
        dict(type="LoadAnnotations", with_bbox=True),
        *augment.pipeline(train, dict(type="ghm.Resize", scale=tuple(train.image_scale), keep_ratio=True)),
        *[dict(type="RandomFlip", prob=train.flip)] * (train.flip > 0),
        dict(type="ghm.Pack"),
    ]
    images = _dataset(params, manifest, "train", pipeline)
    images["filter_cfg"] = dict(filter_empty_gt=train.filter_empty, min_size=1)
    optimizer = dict(check.optimizer(train), lr=train.learning_rate, weight_decay=train.weight_decay)
    return dict(
        train_dataloader=dict(
            batch_size=train.batch_size,
            num_workers=params.machine.workers,
            dataset=dict(type="ghm.Samples", seed=seed, dataset=images),
        ),
        # What follows is for `ghm.training`, which has loop and optimisers of its own.
        accumulate=train.accumulate,
        optimizer=optimizer,
        schedule=dict(
            type=train.schedule,
            lr=train.learning_rate,
            lr_steps=list(train.lr_steps),
            warmup_iters=train.warmup_iters,
            warmup_ratio=train.warmup_ratio,
            epochs=train.epochs,
            steps=steps(train, manifest),
        ),
        ema_momentum=train.ema_momentum,
        grad_clip=train.grad_clip,
        speed={name: getattr(train, name) for name in ("precision", "channels_last", "compile", "tf32")},
    )


def learning_rate(schedule: dict[str, Any], step: int) -> float:
    """Of a step, from 0. `schedule`: that of a config, whose `steps` are those of an epoch."""
    warmup, ratio = schedule["warmup_iters"], schedule["warmup_ratio"]
    lr = schedule["lr"] * (ratio + (1 - ratio) * min(1.0, step / max(1, warmup - 1)) if warmup else 1.0)
    if schedule["type"] == "cosine":
        return lr * (1 + cos(pi * step / (schedule["epochs"] * schedule["steps"]))) / 2
    return lr * 0.1 ** sum(step // schedule["steps"] >= epoch for epoch in schedule["lr_steps"])


def _testing(params: Params, manifest: dict[str, Any]) -> dict[str, Any]:
    """Where AP is measured: `test_*` on the reported split, `validation` during training, on a split not trained on."""
    pipeline = [
        dict(type="ghm.LoadImage"),
        dict(type="ghm.Resize", scale=tuple(params.train.image_scale), keep_ratio=True),
        dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
    ]
    reported, watched = (
        dict(_dataset(params, manifest, split, pipeline), test_mode=True)
        for split in (params.evaluate.split, params.splits()[0])
    )
    return dict(
        test_dataloader=dict(
            batch_size=params.evaluate.batch_size,
            num_workers=params.machine.workers,
            sampler=dict(type="DefaultSampler", shuffle=False),
            collate_fn=dict(type="ghm.collate"),
            dataset=dict(type="ghm.Samples", dataset=reported),
        ),
        test_cfg=dict(type="TestLoop"),
        test_evaluator=dict(type="CocoMetric", ann_file=reported["data_root"] + reported["ann_file"], metric="bbox"),
        validation=dict(
            images=params.train.val_images,
            annotations=watched["data_root"] + watched["ann_file"],
            dataset=dict(type="ghm.Samples", dataset=watched),
        ),
    )


def _dataset(params: Params, manifest: dict[str, Any], split: str, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
    return dict(
        type="CocoDataset",
        data_root=f"data/{params.data.name}/",
        ann_file=manifest["splits"][split]["annotations"],
        data_prefix=dict(img=f"{manifest['splits'][split]['folder']}/"),
        metainfo=dict(classes=tuple(manifest["classes"])),
        pipeline=pipeline,
    )
