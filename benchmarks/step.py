"""A training step, ours beside stock mmdet, in one process: where its time goes, its operators and waits, its memory.

    python -m benchmarks.step --out DIR [--rounds N]

Stock mmdet has its own data set, preprocessor, `RetinaHead`, losses, optimiser wrapper and schedule, as its `Runner`
puts them together, and the same weights and images. Blocks of steps of both take turns; shown are medians of blocks,
and the median of the ratios of a block to the one beside it.

- *default*, on a CPU: the default of `params.yaml` with its real images, from files to moved weights. Parts of a step
  come from a second pass in which each is timed by itself.
- *coco*, on a GPU: RetinaNet R50-FPN as in the preset `coco_r50_1x`, images of noise of 800 x 1344 pixels with 7 boxes
  each, in memory: reading them is not timed. bf16 is mmdet's automatic mixed precision; ours compiled, theirs never.
- *operators*: what targets and losses dispatch for 16 images of 800 x 1333 pixels, and how often the host would wait
  for a GPU; and a whole step of the default. Counted on a CPU, by the code that a GPU runs without kernels.
"""

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.registry import OPTIM_WRAPPERS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor

from benchmarks import faults
from benchmarks.losses import context
from benchmarks.watch import Clock, Count, counted
from ghm import config, params, sections
from ghm.registry import MODELS
from ghm.targets import Truth
from ghm.training import batches
from ghm.training.batches import Batch
from ghm.training.engine import Engine
from ghm.training.processes import Processes

ROOT = Path(__file__).parents[1]
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
VARIANTS = ("fl_sl1", "ghmc_ghmr")
HEIGHT, WIDTH, SHOWN = 800, 1344, 1333  # of an image; its last pixels are padding
STOCK = {  # of the reference's configs
    "ghm.FocalLoss": dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25),
    "ghm.SmoothL1Loss": dict(type="SmoothL1Loss", beta=0.11),
    "ghm.GHMC": dict(type="GHMC", bins=30, momentum=0.75, use_sigmoid=True),
    "ghm.GHMR": dict(type="GHMR", mu=0.02, bins=10, momentum=0.7, loss_weight=10.0),
}


class Ours:
    """Our engine; `given` is a batch to be taken at each step, or None for the training images."""

    def __init__(self, cfg: Any, given: Batch | None) -> None:
        self.engine = Engine(cfg, Processes(), begins=True)
        self.engine.model.train()
        self.given, self.taken = given.pin_memory() if given and CUDA else given, 0  # as our loader hands it over
        if given is None:
            self.loader = batches.loader(cfg, Processes())
            self.images = _endless(self.loader, lambda epoch: self.loader.batch_sampler.start(epoch, 0))

    def load(self) -> Batch:
        return self.given or next(self.images)

    def step(self) -> None:
        batch = self.load()
        lr = config.learning_rate(self.engine.cfg.schedule, self.taken)
        self.taken += 1
        self.engine.step([batch], lr, [0.0, 0.0, 0.0]).read()

    def watch(self, clock: Clock) -> None:
        detector, head = self.engine.detector, self.engine.detector.bbox_head
        clock.time("load", self, "load")
        clock.time("transfer", batches, "prepare")
        clock.time("forward", detector, "extract_feat")
        clock.time("forward", head, "forward")
        clock.time("targets", head, "examples")
        clock.time("loss", head, "_losses")
        clock.time("backward", self.engine, "_backward")
        clock.time("optimiser", self.engine, "_update")


class Stock:
    """mmdet's training step, from its own parts and with the weights of ours."""

    def __init__(self, cfg: Any, given: Batch | None, state: dict[str, Tensor]) -> None:
        model = copy.deepcopy(cfg.model.to_dict())
        head = model["bbox_head"]
        head |= _stock(head)
        if head["norm_cfg"]:
            head["norm_cfg"]["type"] = "GN"
        model["backbone"]["init_cfg"] = None
        init_default_scope("mmdet")
        self.model: Any = MODELS.build(model)
        self.model.load_state_dict(state, strict=False)
        self.model.to(DEVICE).train()
        kind, dtype = (
            ("AmpOptimWrapper", {"dtype": "bfloat16"}) if cfg.speed.precision == "bf16" else ("OptimWrapper", {})
        )
        optimizer = {name: value for name, value in cfg.optimizer.items() if name != "fused"}
        self.wrapper: Any = OPTIM_WRAPPERS.build(
            dict(type=kind, optimizer=_built(optimizer, self.model), clip_grad=dict(max_norm=cfg.grad_clip), **dtype)
        )
        self.given = _as_mmdet(given) if given else None
        if given is None:
            images = cfg.train_dataloader.dataset.dataset.to_dict()
            theirs = [dict(type="LoadImageFromFile"), *images["pipeline"][1:-1], dict(type="PackDetInputs")]
            images["pipeline"] = [dict(each, type=each["type"].removeprefix("ghm.")) for each in theirs]
            settings = dict(batch_size=cfg.train_dataloader.batch_size, num_workers=0, dataset=images)
            settings |= dict(sampler=dict(type="DefaultSampler"), batch_sampler=dict(type="AspectRatioBatchSampler"))
            self.loader: Any = Runner.build_dataloader(settings, seed=cfg.randomness.seed)
            self.images = _endless(self.loader, self.loader.batch_sampler.sampler.set_epoch)

    def load(self) -> dict[str, Any]:
        return dict(self.given) if self.given else next(self.images)

    def step(self) -> None:
        log = self.model.train_step(self.load(), self.wrapper)
        log["loss"].item()  # as the hook does that stops at a loss that is not finite

    def watch(self, clock: Clock) -> None:
        model, head = self.model, self.model.bbox_head
        clock.time("load", self, "load")
        clock.time("transfer", model.data_preprocessor, "forward")
        clock.time("forward", model, "extract_feat")
        clock.time("forward", head, "forward")
        clock.time("targets", head, "get_anchors")
        clock.time("targets", head, "get_targets")
        clock.time("loss", head, "loss_by_feat")
        clock.time("backward", self.wrapper, "backward")
        clock.time("optimiser", self.wrapper, "step")
        clock.time("optimiser", self.wrapper, "zero_grad")


def _endless(loader: Any, start: Callable[[int], Any]) -> Iterator[Any]:
    epoch = 0
    while True:
        start(epoch)
        yield from loader
        epoch += 1


def _built(optimizer: dict[str, Any], model: Any) -> torch.optim.Optimizer:
    arguments = dict(optimizer)
    return getattr(torch.optim, arguments.pop("type"))(model.parameters(), **arguments)


def _as_mmdet(batch: Batch) -> dict[str, Any]:
    samples = []
    for box_G4, label_G, size in zip(*vars(batch.truth).values(), strict=True):
        truth, shape = InstanceData(bboxes=box_G4[label_G >= 0], labels=label_G[label_G >= 0]), tuple(size.tolist())
        samples.append(DetDataSample(metainfo={"img_shape": shape, "ori_shape": shape}, gt_instances=truth))
    return {"inputs": [*batch.pixel_BHW3.permute(0, 3, 1, 2).contiguous()], "data_samples": samples}


def noise(images: int, boxes: int, height: int, width: int, shown: int) -> Batch:
    """Images of noise, `shown` pixels of each row inside, with boxes anywhere."""
    generator = torch.Generator().manual_seed(0)
    inside = torch.tensor([shown, height])
    size = torch.rand(images, boxes, 2, generator=generator) * inside * 0.4 + 8
    corner = torch.rand(images, boxes, 2, generator=generator) * (inside - size)
    label = torch.randint(0, 80, (images, boxes), generator=generator)
    truth = Truth(torch.cat([corner, corner + size], 2), label, torch.tensor([[height, width]] * images))
    pixels = torch.randint(0, 256, (images, height, width, 3), generator=generator, dtype=torch.uint8)
    return Batch(pixels, torch.tensor([[height, shown]] * images), truth, ["noise"] * images, [])


def coco(variant: str, precision: str, compiled: bool = False) -> Any:
    """The config of the preset `coco_r50_1x` with random weights."""
    content = sections.read(ROOT / "params.yaml")
    for section, values in sections.read(ROOT / "presets" / "coco_r50_1x.yaml").items():
        content[section].update(values)
    content["train"] |= {"precision": precision, "compile": compiled}
    manifest = {"name": "coco", "classes": [str(number) for number in range(80)], "category_ids": [*range(80)]}
    split = {"images": 117_266, "images_without_boxes": 0, "annotations": "none.json", "folder": "none"}
    manifest["splits"] = dict.fromkeys(("train", "val"), split)
    return config.build(params.parse(content), variant, manifest, None, 0)


def synchronised(run: Callable[[], None], steps: int) -> float:
    """Milliseconds per step."""
    if CUDA:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        run()
    if CUDA:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps * 1e3


def compared(name: str, cfg: Any, given: Batch | None, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Ours and stock in turns, by whole steps and then by parts."""
    ours = Ours(cfg, given)
    state = {key: value.clone() for key, value in ours.engine.detector.state_dict().items()}
    sides: dict[str, Any] = {"ours": ours}
    rows: dict[str, dict[str, Any]] = {}
    memory: dict[str, float] = {}
    for side in ("ours", "mmdet"):
        compiled, held = cfg.speed.compile and side == "ours", torch.cuda.memory_allocated() if CUDA else 0
        rows[side] = {"step": name, "precision": cfg.speed.precision + " compiled" * compiled, "of": side}
        try:
            if side == "mmdet":
                sides[side] = Stock(cfg, given, state)
            sides[side].step()
            if CUDA:
                torch.cuda.reset_peak_memory_stats()
            synchronised(sides[side].step, 2)
        except RuntimeError as error:  # mmdet's GHM refuses to mix dtypes
            rows[side]["fails"] = str(error).splitlines()[0]
            del sides[side]
        memory[side] = (torch.cuda.max_memory_allocated() - held) / 2**30 if CUDA else 0.0
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            times[side].append(synchronised(run.step, steps))
    for side, run in sides.items():
        row = rows[side]
        row["ms"] = round(median(times[side]), 2)
        if len(sides) == 2:
            row["times mmdet"] = round(median(b / a for a, b in zip(times[side], times["mmdet"], strict=True)), 3)
        row["blocks_ms"] = [round(value, 2) for value in times[side]]
        if CUDA:
            row["GiB"] = round(memory[side], 2)
            continue
        clock = Clock()
        run.watch(clock)
        whole = synchronised(run.step, 2 * steps) * 2 * steps
        parts = {part: spent * 1e3 / (2 * steps) for part, spent in clock.seconds.items()}
        parts["rest"] = whole / (2 * steps) - sum(parts.values())
        row["parts_ms"] = {part: round(value, 2) for part, value in parts.items()}
        row["targets and loss, share"] = round((parts["targets"] + parts["loss"]) / sum(parts.values()), 3)
    return list(rows.values())


def operators(images: int = 16) -> list[dict[str, Any]]:
    """Of targets and losses at COCO's size, forward, ours and mmdet's, and of a whole step of the default."""
    rows: list[dict[str, Any]] = []
    sizes = [(HEIGHT // stride, WIDTH // stride) for stride in (8, 16, 32)] + [(13, 21), (7, 11)]
    for variant in VARIANTS:
        for boxes in (7, 30):
            cfg = coco(variant, "fp32")
            ours, theirs = (MODELS.build({**head, "_scope_": "mmdet"}) for head in _heads(cfg))
            batch = noise(images, boxes, 32, 32, 32)
            truth = noise(images, boxes, HEIGHT, WIDTH, SHOWN).truth
            deltas = [torch.zeros(images, 9 * 4, *size) for size in sizes]
            scores = [torch.randn(1, 9 * 80, 1, 1).expand(images, -1, *size) for size in sizes]
            ours.examples(scores, deltas, truth)  # makes the anchors, once for every shape
            with torch.no_grad(), counted() as count:
                ours._losses(*ours.examples(scores, deltas, truth))
            row = {"step": variant, "images": images, "boxes": boxes, "of": "ours"}
            rows.append({**row, "operators": count.operators.total(), "waits": count.waits.total()})
            small = [score[..., :8, :8] for score in scores], [delta[..., :8, :8] for delta in deltas]
            samples = _as_mmdet(Batch(batch.pixel_BHW3, batch.size_B2, truth, batch.paths, []))["data_samples"]
            metas = [dict(sample.metainfo, pad_shape=(HEIGHT, WIDTH)) for sample in samples]
            with torch.no_grad(), Count() as count:  # as many of them for a map of any size
                theirs.loss_by_feat(*small, [sample.gt_instances for sample in samples], metas)
            rows.append({**row, "of": "mmdet", "operators": count.operators.total(), "waits": count.waits.total()})
    return rows


def _heads(cfg: Any) -> list[dict[str, Any]]:
    head = cfg.model.bbox_head.to_dict() | {"train_cfg": cfg.model.train_cfg.to_dict()}
    small = head | dict(in_channels=8, feat_channels=8, stacked_convs=0)
    return [small, small | _stock(head)]


def _stock(head: dict[str, Any]) -> dict[str, Any]:
    """What of a head is otherwise in stock mmdet."""
    return {"type": "RetinaHead", **{name: STOCK[head[name]["type"]] for name in ("loss_cls", "loss_bbox")}}


def whole_step(variant: str, cfg: Any) -> dict[str, Any]:
    """Operators and waits of a step of the default, from the arrival of a batch to the reading of its numbers."""
    ours = Ours(cfg, None)
    ours.step()
    batch = ours.load()
    with counted() as count:
        ours.engine.step([batch], 1e-3, [0.0])
    return {"step": variant, "of": "a whole step", "operators": count.operators.total(), "waits": count.waits.total()}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    named = [key for row in rows for key in row if key not in ("blocks_ms", "parts_ms")]
    named += [part for row in rows for part in row.get("parts_ms", {})]
    keys = list(dict.fromkeys(named))
    lines = [f"| {' | '.join(keys)} |", "|" + "---|" * len(keys)]
    for row in rows:
        flat = {**row, **row.get("parts_ms", {})}
        lines.append(f"| {' | '.join(str(flat.get(key, '-')) for key in keys)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    out, rounds = arguments.out.resolve(), arguments.rounds
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, Any]]] = {}

    def keep(name: str, rows: list[dict[str, Any]]) -> None:
        results.setdefault(name, []).extend(rows)
        content = {**context(DEVICE), "threads": torch.get_num_threads(), "results": results}
        file = "step" if CUDA else "step_cpu"
        (out / f"{file}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        text = "\n".join(f"{name}\n\n{table(rows)}" for name, rows in results.items())
        (out / f"{file}.md").write_text(text, encoding="utf-8")
        print(f"{name}\n\n{table(rows)}", file=sys.stderr, flush=True)

    if CUDA:
        wanted = [("fl_sl1", "bf16", False, 16), ("ghmc_ghmr", "bf16", False, 16), ("fl_sl1", "bf16", True, 16)]
        wanted += [("ghmc_ghmr", "fp32", False, 16), ("fl_sl1", "bf16", False, 2)]
        for variant, precision, compiled, images in wanted:
            cfg, given = coco(variant, precision, compiled), noise(images, 7, HEIGHT, WIDTH, SHOWN)
            rows = compared(variant, cfg, given, rounds, 64 // images)
            keep("coco", [{"images": images, **row} for row in rows])
            torch.cuda.empty_cache()
        return
    with tempfile.TemporaryDirectory(prefix="ghm-step-") as folder:
        faults.prepare(Path(folder) / "run", None, processes=1, images=400)
        os.chdir(Path(folder) / "run")
        content = sections.read(Path("params.yaml")) | {"train": sections.read(ROOT / "params.yaml")["train"]}
        parameters = params.parse(content)
        for variant in VARIANTS:
            cfg = config.for_run(parameters, variant, 0)
            cfg.train_dataloader.num_workers = 0
            keep("default", compared(variant, cfg, None, rounds, 20))
            keep("operators", [whole_step(variant, cfg)])
        os.chdir(out)
    keep("operators", operators())


if __name__ == "__main__":
    main()
