"""The checks of `benchmarks.gpu_checks` that need a detector: its targets, its step, and what it finds."""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks.gpu_checks_kernels import CUDA, DEVICE, at_most, error, need_mmdet


def targets_are_mmdets() -> str:
    """Labels, weights and box targets of images at COCO's size: mmdet's on the same device bit for bit, and the CPU's.

    The logarithms in the targets for widths and heights are the device's own.
    """
    need_mmdet()
    from mmengine.structures import InstanceData

    from benchmarks import step
    from ghm.registry import MODELS

    cfg, images = step.coco("fl_sl1", "fp32"), 8 if CUDA else 1
    head: Any = MODELS.build(
        {**cfg.model.bbox_head.to_dict(), "train_cfg": cfg.model.train_cfg.to_dict(), "_scope_": "mmdet"}
    )
    truth = step.noise(images, 30, step.HEIGHT, step.WIDTH, step.SHOWN).truth
    truth.label_BG[::2, 20:], truth.box_BG4[::2, 20:] = -1, 0.0
    truth = replace(truth, size_B2=truth.size_B2 - 64 * torch.arange(images)[:, None])
    shapes = [(step.HEIGHT // stride, step.WIDTH // stride) for stride in (8, 16, 32)] + [(13, 21), (7, 11)]
    found, expected = [], []
    for device in (DEVICE, "cpu"):
        maps = [[torch.zeros(images, 9 * depth, *shape, device=device) for shape in shapes] for depth in (80, 4)]
        batch, positives = head.examples(*maps, truth.to(device))
        found.append([batch.label_N, batch.label_weight_N, batch.box_target_N4, batch.box_weight_N4, positives])
    metas = [dict(img_shape=tuple(size), pad_shape=tuple(size)) for size in truth.size_B2.tolist()]
    boxes = [
        InstanceData(bboxes=box_G4[label_G >= 0].to(DEVICE), labels=label_G[label_G >= 0].to(DEVICE))
        for box_G4, label_G in zip(truth.box_BG4, truth.label_BG, strict=True)
    ]
    *levels, positives = head.get_targets(*head.get_anchors(shapes, metas, device=DEVICE), boxes, metas)
    expected = [torch.cat([level.flatten(0, 1) for level in target]) for target in levels]
    here, host = found
    if not all(map(torch.equal, here, [*expected, torch.tensor(float(positives), device=DEVICE)])):
        raise AssertionError("not mmdet's on this device")
    del here[2], host[2]
    if not all(map(torch.equal, [tensor.cpu() for tensor in here], host)):
        raise AssertionError("not the CPU's")
    return f"{int(host[-1])} positives of {len(host[0]):,}"


def a_step_waits_for_nothing() -> str:
    """No step of the engine makes the host wait for the device, from the batch's arrival to the reading of its numbers.

    On a CPU operators that would wait are counted: one looks at the sizes of the images, which are always on the host.
    """
    need_mmdet()
    from benchmarks import step
    from ghm.training.engine import Engine
    from ghm.training.processes import Processes

    for variant, precision in (("ghmc_ghmr", "bf16"), ("fl_sl1", "fp32"), ("ghmc_ghmr", "fp16")):
        engine = Engine(step.coco(variant, precision), Processes(), begins=True)
        engine.model.train()
        batch = step.noise(2, 7, 256, 320, 300) if CUDA else step.noise(1, 3, 64, 64, 60)
        batch = batch.pin_memory() if CUDA else batch
        for _ in range(1 + CUDA):  # the first makes anchors, and compiles
            engine.step([batch], 1e-4, [0.0]).read()
        if not CUDA:
            with step.counted() as count:
                engine.step([batch], 1e-4, [0.0])
            if count.waits.total() > 1:
                raise AssertionError(f"{variant}, {precision}: {dict(count.waits)}")
            continue
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            numbers = [engine.step([batch], 1e-4, [0.0]) for _ in range(2)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for number in numbers:
            number.read()
    return "silent"


def group_norm_is_pytorchs() -> str:
    """Value and gradients of our module and of PyTorch's operator in float64, and how the result lies in memory."""
    need_mmdet()
    from ghm.norms import GroupNorm

    worst, layouts = 0.0, []
    for layout in (torch.contiguous_format, torch.channels_last):
        module = GroupNorm(64, 16).to(DEVICE)
        torch.nn.init.normal_(module.weight)
        torch.nn.init.normal_(module.bias)
        x = (torch.randn(2, 64, 25, 42, device=DEVICE) * 3 + 1).contiguous(memory_format=layout)
        upstream = torch.randn_like(x)
        sources = [x.requires_grad_(), module.weight, module.bias]
        wide = [tensor.detach().double().contiguous().requires_grad_() for tensor in sources]
        value, expected = module(x), functional.group_norm(wide[0], 16, *wide[1:])
        gradients = torch.autograd.grad(value, sources, upstream)
        slopes = torch.autograd.grad(expected, wide, upstream.double())
        pairs = zip((value, *gradients), (expected, *slopes), strict=True)
        worst = max(worst, *(error(found, wanted) for found, wanted in pairs))
        layouts.append("kept" if value.is_contiguous(memory_format=layout) else "lost")
    return f"{at_most(1e-5, worst)}, NCHW {layouts[0]}, channels_last {layouts[1]}"


def a_detector_finds_what_it_finds_on_the_cpu() -> str:
    """The tiny preset, trained here: the ten best scores of every validation image, on the device and on the CPU."""
    need_mmdet()
    from ghm import backbones, data, params, presets, training
    from ghm.detect.detector import Detector, find_run
    from ghm.predict import predict

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("presets", "params.yaml"):
            (shutil.copytree if (before / name).is_dir() else shutil.copy)(before / name, Path(folder) / name)
        os.chdir(folder)
        try:
            presets.apply("tiny")
            given = params.load()
            data.prepare(given)
            backbones.prepare(given)
            training.train(given, "fl_sl1", Path("runs/fl_sl1"))
            run = find_run("fl_sl1", 0)
            detectors = [Detector.open(*run, score=0.0, device=device) for device in (DEVICE, "cpu")]
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            paths = sorted(Path("data/digits/val").glob("*.jpg"))
            scores = (
                [found.score_N[:10] for _, found in predict(detector.model, detector.batches(paths))]
                for detector in detectors
            )
            worst = max(float(abs(found - expected).max()) for found, expected in zip(*scores, strict=True))
        finally:
            os.chdir(before)
    return at_most(1e-3, worst)
