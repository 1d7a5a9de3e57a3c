"""`Params` -> mmengine `Config`. The only place that writes mmdet config."""

from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

import mmdet.models
from mmengine.config import Config

from ghm.errors import InputError
from ghm.params import GROUPS, Focal, Ghmc, Ghmr, Loss, Model, OtherLoss, Params, SmoothL1, Train
from ghm.registry import MODELS

# Losses on decoded boxes instead of on deltas.
IOU_LOSSES = {name for name in vars(mmdet.models.losses) if name.endswith("IoULoss")}
BACKBONES: dict[str, dict[str, Any]] = {
    "resnet18": {"type": "mmdet.ResNet", "depth": 18},
    "resnet34": {"type": "mmdet.ResNet", "depth": 34},
    "resnet50": {"type": "mmdet.ResNet", "depth": 50},
    "resnet101": {"type": "mmdet.ResNet", "depth": 101},
    "resnext101_32x4d": {"type": "mmdet.ResNeXt", "depth": 101, "groups": 32, "base_width": 4},
    "resnext101_64x4d": {"type": "mmdet.ResNeXt", "depth": 101, "groups": 64, "base_width": 4},
}


def build(params: Params, variant: str, manifest: dict[str, Any], weights: Path | None, seed: int) -> Config:
    """Write the config of one training of `variant` and of its evaluation.

    Args:
        params: the checked parameters.
        variant: a name from `params.variants`.
        manifest: of the data set, for its classes and files.
        weights: the pretrained backbone, None to start from random weights.
        seed: of everything random.

    Raises:
        InputError: a loss section does not fit its role, or mmdet does not know its type.
    """
    root = Path("data") / params.data.name
    return Config(
        {
            "default_scope": "mmdet",
            "custom_imports": {"imports": ["ghm"]},
            "model": _detector(params, variant, len(manifest["classes"]), weights),
            **_training(params, manifest, root, seed),
            **_testing(params, manifest, root),
            "validation": _validation(params, manifest, root),
            "randomness": {"seed": seed},
            "env_cfg": {"cudnn_benchmark": False, "dist_cfg": {"backend": "nccl"}},
            "log_level": "WARNING",
            "visualizer": {"type": "Visualizer", "vis_backends": None},
            # What `ghm.training` sets on the device, and the weights depend on.
            "speed": {name: getattr(params.train, name) for name in ("precision", "channels_last", "compile", "tf32")},
            "resume": False,
            "load_from": None,
        }
    )


def backbone(model: Model) -> dict[str, Any]:
    """The ResNet or ResNeXt of `model`, without its weights."""
    return {
        **BACKBONES[model.backbone],
        "base_channels": model.base_channels,
        "frozen_stages": model.frozen_stages,
        "norm_eval": model.norm_eval,
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "init_cfg": None,
    }


def preprocessor() -> dict[str, Any]:
    """ImageNet's mean and spread of R, G, B: what pretrained backbones expect."""
    return {
        "type": "DetDataPreprocessor",
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "bgr_to_rgb": True,
        "pad_size_divisor": 32,
    }


def _detector(params: Params, variant: str, classes: int, weights: Path | None) -> dict[str, Any]:
    model, evaluate = params.model, params.evaluate
    expansion = 4 if BACKBONES[model.backbone]["depth"] >= 50 else 1
    init = {"type": "Pretrained", "checkpoint": str(weights)} if weights else None
    return {
        "type": "RetinaNet",
        "data_preprocessor": preprocessor(),
        "backbone": {**backbone(model), "init_cfg": init},
        "neck": {
            "type": "FPN",
            "in_channels": [model.base_channels * expansion * 2**stage for stage in range(4)],
            "out_channels": model.fpn_channels,
            "start_level": 1,
            "add_extra_convs": "on_input",
            "num_outs": model.levels,
        },
        "bbox_head": _head(params, variant, classes),
        "train_cfg": {
            "assigner": {
                "type": "MaxIoUAssigner",
                "pos_iou_thr": 0.5,
                "neg_iou_thr": 0.4,
                "min_pos_iou": 0,
                "ignore_iof_thr": -1,
            },
            "sampler": {"type": "PseudoSampler"},
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "test_cfg": {
            "nms_pre": 1000,
            "min_bbox_size": 0,
            "score_thr": evaluate.score_threshold,
            "nms": {"type": "nms", "iou_threshold": evaluate.nms_iou},
            "max_per_img": evaluate.max_per_image,
        },
    }


def _head(params: Params, variant: str, classes: int) -> dict[str, Any]:
    model, losses = params.model, params.variants[variant]
    loss_bbox = _loss(losses.box, params.losses[losses.box], "box")
    norms = {"GN": {"type": "GN", "num_groups": GROUPS}, "BN": {"type": "BN"}, None: None}
    return {
        "type": "ghm.GHMRetinaHead",
        "num_classes": classes,
        "in_channels": model.fpn_channels,
        "feat_channels": model.head_channels,
        "stacked_convs": model.stacked_convs,
        "norm_cfg": norms[model.head_norm],
        "anchor_generator": {
            "type": "AnchorGenerator",
            "octave_base_scale": model.anchors.base_scale,
            "scales_per_octave": model.anchors.scales_per_octave,
            "ratios": list(model.anchors.ratios),
            "strides": [8 * 2**level for level in range(model.levels)],
        },
        "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [1.0] * 4},
        "reg_decoded_bbox": loss_bbox["type"] in IOU_LOSSES,
        "loss_cls": _loss(losses.cls, params.losses[losses.cls], "cls"),
        "loss_bbox": loss_bbox,
    }


def loss_type(loss: Loss) -> str:
    """The registered name of the loss of a section."""
    if isinstance(loss, OtherLoss):
        return loss.type
    return {Focal: "ghm.FocalLoss", Ghmc: "ghm.GHMC", SmoothL1: "ghm.SmoothL1Loss", Ghmr: "ghm.GHMR"}[type(loss)]


def _loss(section: str, loss: Loss, role: str) -> dict[str, Any]:
    """The config of a loss section, refused where it cannot be built or belongs to the other role."""
    roles = {Focal: "cls", Ghmc: "cls", SmoothL1: "box", Ghmr: "box"}
    if roles.get(type(loss), role) != role:
        raise InputError(f"{section} is a loss for {roles[type(loss)]}, and a variant uses it for {role}")
    if isinstance(loss, OtherLoss):
        config = {**loss.arguments, "type": loss.type}
    else:
        config = {**asdict(loss), "type": loss_type(loss)}
        if role == "cls":
            config["use_sigmoid"] = True
    try:
        MODELS.build({**config, "_scope_": "mmdet"})
    except (KeyError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{section} is no loss that mmdet can build from type {config['type']!r}: {reason}") from None
    return config


def steps(train: Train, manifest: dict[str, Any]) -> int:
    """How many steps an epoch has.

    Raises:
        InputError: no image is left to train on.
    """
    split = manifest["splits"]["train"]
    images = split["images"] - (split["images_without_boxes"] if train.filter_empty else 0)
    if images < 1:
        raise InputError(f"the training split of {manifest['name']} has no image with a box, so nothing can be learned")
    return ceil(images / train.batch_size)


def _training(params: Params, manifest: dict[str, Any], root: Path, seed: int) -> dict[str, Any]:
    train = params.train
    pipeline = [
        {"type": "ghm.LoadImage"},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "ghm.Resize", "scale": tuple(train.image_scale), "keep_ratio": True},
        {"type": "RandomFlip", "prob": train.flip},
        {"type": "PackDetInputs"},
    ]
    return {
        "train_dataloader": {
            "batch_size": train.batch_size,
            "num_workers": params.machine.workers,
            "persistent_workers": params.machine.workers > 0,
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "batch_sampler": {"type": "ghm.ResumableBatches"},
            "collate_fn": {"type": "ghm.collate"},
            "worker_init_fn": {"type": "ghm.ignore_signals"},
            "dataset": {
                "type": "ghm.Samples",
                "seed": seed,
                "dataset": {
                    **_dataset(manifest, "train", root, pipeline),
                    "filter_cfg": {"filter_empty_gt": train.filter_empty, "min_size": 1},
                },
            },
        },
        "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": train.epochs},
        "optim_wrapper": {
            "type": "ghm.ScaledOptimWrapper",
            "optimizer": _optimizer(train),
            "scaled": train.precision == "fp16",
        },
        "param_scheduler": _schedule(train, steps(train, manifest)) if train.epochs else [],
        # The loop of `ghm.training` saves, logs and watches.
        "default_hooks": {
            **dict.fromkeys(("runtime_info", "timer", "sampler_seed", "logger", "checkpoint")),
            "param_scheduler": {"type": "ParamSchedulerHook"},
        },
        "custom_hooks": [{"type": "EMAHook", "momentum": train.ema_momentum}] if train.ema_momentum else [],
    }


def _optimizer(train: Train) -> dict[str, Any]:
    lr = train.learning_rate
    if train.optimizer == "adamw":
        return {"type": "AdamW", "lr": lr, "weight_decay": train.weight_decay, "fused": True}
    return {"type": "SGD", "lr": lr, "momentum": 0.9, "weight_decay": train.weight_decay}


def _schedule(train: Train, each: int) -> list[dict[str, Any]]:
    warmup = {
        "type": "LinearLR",
        "start_factor": train.warmup_ratio,
        "by_epoch": False,
        "begin": 0,
        "end": train.warmup_iters,
    }
    if train.schedule == "cosine":
        main = {"type": "CosineAnnealingLR", "by_epoch": False, "T_max": train.epochs * each, "eta_min": 0.0}
    else:
        main = {"type": "MultiStepLR", "by_epoch": True, "milestones": list(train.lr_steps), "gamma": 0.1}
    return [warmup, main] if train.warmup_iters else [main]


def _testing(params: Params, manifest: dict[str, Any], root: Path) -> dict[str, Any]:
    """The test half. Whoever runs it sets `test_evaluator.outfile_prefix`: metrics come from the stored detections."""
    name = params.evaluate.split
    return {
        "test_dataloader": {
            "batch_size": params.train.batch_size,
            "num_workers": params.machine.workers,
            "drop_last": False,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": {"type": "ghm.collate"},
            "dataset": _test_samples(params, manifest, name, root),
        },
        "test_cfg": {"type": "TestLoop"},
        "test_evaluator": {
            "type": "CocoMetric",
            "ann_file": str(root / manifest["splits"][name]["annotations"]),
            "metric": "bbox",
            "format_only": True,
            "outfile_prefix": "detections",
        },
    }


def _validation(params: Params, manifest: dict[str, Any], root: Path) -> dict[str, Any]:
    """What a training measures AP on while it runs: the first split that is not trained on."""
    name = params.splits()[0]
    return {
        "images": params.train.val_images,
        "annotations": str(root / manifest["splits"][name]["annotations"]),
        "dataset": _test_samples(params, manifest, name, root),
    }


def _test_samples(params: Params, manifest: dict[str, Any], split: str, root: Path) -> dict[str, Any]:
    pipeline = [
        {"type": "ghm.LoadImage"},
        {"type": "ghm.Resize", "scale": tuple(params.train.image_scale), "keep_ratio": True},
        {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
    ]
    return {"type": "ghm.Samples", "dataset": {**_dataset(manifest, split, root, pipeline), "test_mode": True}}


def _dataset(manifest: dict[str, Any], split: str, root: Path, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "CocoDataset",
        "data_root": f"{root}/",
        "ann_file": manifest["splits"][split]["annotations"],
        "data_prefix": {"img": f"{manifest['splits'][split]['folder']}/"},
        "metainfo": {"classes": tuple(manifest["classes"])},
        "pipeline": pipeline,
    }


def for_run(params: Params, variant: str, seed: int) -> Config:
    """The config of one training run and its evaluation, from what the stages `data` and `backbone` left."""
    from ghm import backbones, data  # which build a backbone by this module

    return build(params, variant, data.read_manifest(params), backbones.weights_path(params), seed)


# mmdet registers its models when they are imported.
assert mmdet.models.RetinaNet
