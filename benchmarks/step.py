"""A training step of RetinaNet R50-FPN at COCO's size: ours beside stock mmdet's head and losses, in one process.

    python -m benchmarks.step --out DIR

Images are noise of 800 x 1344 pixels with 7 boxes each, 16 per step, and stay on the device: loading is not timed. Both
detectors are those of the preset `coco_r50_1x` with random weights; the stock one has mmdet's `RetinaHead` and losses.
A step is forward, target assignment, losses, backward, gradient clipping and SGD. In each round every setting takes
STEPS steps, timed together; shown are the median of rounds, its ratio to stock mmdet in the same precision, and the
peak of memory. On a CPU one small step shows that all of it runs.
"""

import argparse
import json
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from benchmarks.losses import context
from ghm import config, params, sections
from ghm.registry import MODELS

ROOT = Path(__file__).parents[1]
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
IMAGES, HEIGHT, WIDTH = (16, 800, 1344) if CUDA else (1, 64, 96)
BOXES = 7
ROUNDS, STEPS = (5, 4) if CUDA else (1, 1)
STOCK = {"fl_sl1": ("FocalLoss", "SmoothL1Loss"), "ghmc_ghmr": ("GHMC", "GHMR")}
OPTIONS = {  # of the reference's configs
    "FocalLoss": {"use_sigmoid": True, "gamma": 2.0, "alpha": 0.25},
    "SmoothL1Loss": {"beta": 0.11},
    "GHMC": {"bins": 30, "momentum": 0.75, "use_sigmoid": True},
    "GHMR": {"mu": 0.02, "bins": 10, "momentum": 0.7, "loss_weight": 10.0},
}


def detector(variant: str, *, stock: bool) -> Any:
    """RetinaNet as the preset describes it, ready to train."""
    content = sections.read(ROOT / "params.yaml")
    for section, values in sections.read(ROOT / "presets" / "coco_r50_1x.yaml").items():
        content[section].update(values)
    parameters = params.parse(content)
    manifest = {"name": "coco", "classes": [str(number) for number in range(80)], "category_ids": [*range(80)]}
    split = {"images": 117_266, "images_without_boxes": 0, "annotations": "none.json", "folder": "none"}
    manifest["splits"] = dict.fromkeys(("train", "val"), split)
    cfg = config.build(parameters, variant, manifest, None, 0).model
    if stock:
        cls, box = STOCK[variant]
        head = cfg.bbox_head
        head.type = "RetinaHead"
        head.loss_cls = {"type": cls, **OPTIONS[cls]}
        head.loss_bbox = {"type": box, **OPTIONS[box]}
    torch.manual_seed(0)
    model = MODELS.build({**cfg, "_scope_": "mmdet"})
    return model.to(DEVICE, memory_format=torch.preserve_format if stock else torch.channels_last).train()


def batch() -> tuple[Tensor, list[DetDataSample]]:
    """Images, [B, 3, H, W], and their boxes."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(IMAGES):
        size = torch.rand(BOXES, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT]) * 0.4 + 8
        corner = torch.rand(BOXES, 2, generator=generator) * (torch.tensor([WIDTH, HEIGHT]) - size)
        truth = InstanceData(
            bboxes=torch.cat([corner, corner + size], 1).to(DEVICE),
            labels=torch.randint(0, 80, (BOXES,), generator=generator).to(DEVICE),
        )
        shape = (HEIGHT, WIDTH)
        meta = {"img_shape": shape, "ori_shape": shape, "pad_shape": shape, "batch_input_shape": shape}
        samples.append(DetDataSample(metainfo=meta, gt_instances=truth))
    return torch.randn(IMAGES, 3, HEIGHT, WIDTH, generator=generator).to(DEVICE), samples


def step(model: Any, optimizer: torch.optim.Optimizer, images: Tensor, samples: list, precision: str) -> None:
    """One step of training."""
    with torch.autocast(DEVICE, torch.bfloat16) if precision == "bf16" else nullcontext():
        losses = model.loss(images, samples)
        total = sum(
            sum(value) if isinstance(value, list) else value for name, value in losses.items() if name != "positives"
        )
    optimizer.zero_grad()
    torch.as_tensor(total).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0)
    optimizer.step()


def timed(run: partial) -> float:
    """Milliseconds per step."""
    if CUDA:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(STEPS):
        run()
    if CUDA:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / STEPS * 1e3


def measured(variant: str, precision: str, images: Tensor, samples: list) -> list[dict[str, Any]]:
    """Both detectors in turns."""
    runs, rows, times, memory = {}, [], {}, {}
    for name in ("ours", "mmdet"):
        model = detector(variant, stock=name == "mmdet")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=1e-4)
        laid_out = images.to(memory_format=torch.channels_last) if name == "ours" else images
        run = partial(step, model, optimizer, laid_out, samples, precision)
        try:
            run()
            if CUDA:
                torch.cuda.reset_peak_memory_stats()
            run()
        except RuntimeError as error:  # mmdet's GHM refuses to mix dtypes
            rows.append({"variant": variant, "precision": precision, "of": name, "fails": str(error).splitlines()[0]})
            continue
        runs[name], times[name] = run, []
        memory[name] = round(torch.cuda.max_memory_allocated() / 2**30, 2) if CUDA else None
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(timed(run))
    middle = {name: median(values) for name, values in times.items()}
    for name in runs:
        row = {"variant": variant, "precision": precision, "of": name, "ms per step": round(middle[name], 1)}
        row["times mmdet"] = round(middle["mmdet"] / middle[name], 2) if "mmdet" in middle else None
        rows.append({**row, "GiB": memory[name], "rounds_ms": [round(value, 1) for value in times[name]]})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    keys = ["variant", "precision", "of", "ms per step", "times mmdet", "GiB"]
    lines = [f"| {' | '.join(keys)} |", "|---|---|---|---:|---:|---:|"]
    for row in rows:
        shown = [row.get(key) for key in keys]
        if "fails" in row:
            shown[3] = f"fails: {row['fails']}"
        lines.append(f"| {' | '.join('-' if value is None else str(value) for value in shown)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    images, samples = batch()
    rows: list[dict[str, Any]] = []
    for precision in ("bf16", "TF32" if CUDA else "fp32"):
        for variant in STOCK:
            rows += measured(variant, precision, images, samples)
            print(table(rows), file=sys.stderr, flush=True)
            record = {**context(DEVICE), "images": IMAGES, "size": [HEIGHT, WIDTH], "boxes": BOXES, "rows": rows}
            (out / "step.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            (out / "step.md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
