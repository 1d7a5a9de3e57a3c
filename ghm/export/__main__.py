"""`python -m ghm.export --variant ghmc_ghmr --out DIR`: a trained variant for other programs.

Writes

- `DIR/model.onnx`: from pixels to boxes, NMS inside. Input `image`, float32 [1, 3, H, W] in R, G, B from 0 to 255, of
  any size; the image is to be resized as in training (`image_scale` and `keep_ratio` in the file's metadata), and is
  normalised and padded inside. Outputs, best first: `boxes` [N, 4] in pixels of the input (left, top, right, bottom),
  `scores` [N], `labels` [N], numbers into `classes` of the metadata.
- `DIR/config.py` and `DIR/model.pth`: the detector in mmdet's own types, for mmdet's own tools. Paths of the data set
  stay as they are, relative to the repository's root.

Both are compared with the run on images of the validation split, and nothing is written where they differ.
"""

import argparse
import contextlib
import copy
import io
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.registry import MODELS
from tqdm import tqdm

from ghm import checkpoints, params
from ghm.cli import run
from ghm.detect.detector import Detector, Source, find_run
from ghm.errors import InputError
from ghm.export import onnx_model
from ghm.export.onnx_check import SCORE, Outcome, Rules, pixels, predict
from ghm.export.onnx_model import Runtime
from ghm.registry import DATASETS
from ghm.training.samples import Unreadable
from ghm.words import count

IMAGES = 100  # of the validation split, for the comparison
ONNX = "model.onnx"
CONFIG = "config.py"
MODEL = "model.pth"
# mmdet's losses that take the arguments of ours.
LOSSES = {"ghm.FocalLoss": "FocalLoss", "ghm.SmoothL1Loss": "SmoothL1Loss"}
# In place of all others of ours, for no detection depends on a loss: mmdet's GHM would want its counts in the state
# dict, and has not all options of ours.
USUAL: dict[str, dict[str, Any]] = {
    "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
    "loss_bbox": {"type": "SmoothL1Loss", "beta": 0.11, "loss_weight": 1.0},
}
_log = logging.getLogger(__name__)


def export(variant: str, seed: int, out: Path, images: int = IMAGES) -> None:
    """Write `out/model.onnx`, `out/config.py` and `out/model.pth`.

    Args:
        images: of the validation split to compare on, at even distances; 0: none.

    Raises:
        InputError: the run or, for the comparison, its validation split is not there, or a detection differs.
    """
    original = Detector(find_run(variant, seed), device="cpu")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as name:
        folder = Path(name)
        _write_mmdet(original, variant, folder)
        plain = Detector(Source(folder / CONFIG, folder / MODEL), device="cpu")
        onnx_model.write(plain.model, _metadata(plain, variant, seed), folder / ONNX)
        if images:
            _check(original, Runtime(folder / ONNX), images)
        for file in (ONNX, CONFIG, MODEL):
            (folder / file).replace(out / file)
    _log.info("%s, %s and %s are in %s", ONNX, CONFIG, MODEL, out)


def plain_config(cfg: Config, variant: str) -> Config:
    """The config of a run in mmdet's own types: the model, and its test on the split that the run is reported on."""
    model = copy.deepcopy(cfg.model)
    model.backbone.init_cfg = None
    head = model.bbox_head
    head.type = "RetinaHead"
    for role in USUAL:
        loss = head[role]
        if loss.type in LOSSES:
            loss.type = LOSSES[loss.type]
        elif loss.type.startswith("ghm."):
            head[role] = dict(USUAL[role])
    return Config(
        {
            "default_scope": "mmdet",
            "model": model,
            **_testing(cfg),
            "env_cfg": {"cudnn_benchmark": False, "dist_cfg": {"backend": "nccl"}},
            "visualizer": {
                "type": "DetLocalVisualizer",
                "vis_backends": [{"type": "LocalVisBackend"}],
                "name": "visualizer",
            },
            "work_dir": f"work_dirs/{variant}",
            "load_from": "{{ fileDirname }}/" + MODEL,  # mmengine puts the folder of the config there
        }
    )


def _testing(cfg: Config) -> dict[str, Any]:
    dataset = copy.deepcopy(cfg.test_dataloader.dataset.dataset)
    dataset.pipeline = [
        {"type": "LoadImageFromFile"},
        _resize(cfg),
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
    ]
    return {
        "test_dataloader": {
            "batch_size": cfg.test_dataloader.batch_size,
            "num_workers": cfg.test_dataloader.num_workers,
            "drop_last": False,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": dataset,
        },
        "test_cfg": {"type": "TestLoop"},
        "test_evaluator": {"type": "CocoMetric", "ann_file": cfg.test_evaluator.ann_file, "metric": "bbox"},
    }


def _resize(cfg: Config) -> Any:
    pipeline: Any = get_test_pipeline_cfg(cfg)  # type: ignore[arg-type]
    [step] = [copy.deepcopy(step) for step in pipeline if step.type in ("ghm.Resize", "Resize")]
    step.type = "Resize"
    return step


def _write_mmdet(detector: Detector, variant: str, folder: Path) -> None:
    """Write the config, and of the weights those that it names: state of a loss stays behind."""
    cfg = plain_config(detector.cfg, variant)
    wanted = MODELS.build(cfg.model).state_dict()
    found, report = checkpoints.select(detector.model.state_dict(), wanted)
    report.require("the run does not fit mmdet's RetinaNet")
    text = f"# RetinaNet of the variant {variant}, in the types of mmdet 3.\n{cfg.pretty_text}"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    state = {name: value.contiguous() for name, value in found.items()}
    dataset = {"classes": detector.classes, "category_ids": detector.category_ids}
    torch.save({"state_dict": state, "meta": {"dataset_meta": dataset}}, folder / MODEL)


def _metadata(detector: Detector, variant: str, seed: int) -> dict[str, str]:
    resize, test_cfg = _resize(detector.cfg), detector.model.test_cfg
    content = {
        "variant": variant,
        "seed": seed,
        "classes": detector.classes,
        "image_scale": list(resize.scale),  # [long, short] side in pixels at most
        "keep_ratio": resize.keep_ratio,
        "score_threshold": test_cfg.score_thr,
        "nms_iou": test_cfg.nms.iou_threshold,
        "max_per_image": test_cfg.max_per_img,
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in content.items()}


def _check(original: Detector, runtime: Runtime, images: int) -> None:
    """Compare the graph with the run on images of the validation split."""
    dataset = _validation(original.cfg)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(images, len(dataset))).astype(int)).tolist()
    outcome = Outcome(Rules.of(original.model.test_cfg))
    for index in tqdm(chosen, desc="compared", unit="image", disable=None):
        sample = dataset[index]
        if isinstance(sample, Unreadable):
            raise InputError(f"{sample}: mend it, or export with --check 0")
        meta = sample["data_samples"]
        kept, candidates = predict(original.model, sample)
        outcome.add(meta.img_path, kept, runtime(pixels(sample)), candidates, max(meta.img_shape))
    _log.info("%s", outcome)
    if outcome.differ:
        raise InputError(
            f"{ONNX} and PyTorch differ in {count(len(outcome.differ), 'detection')} of "
            f"{count(outcome.images, 'image')} and nothing is "
            f"written, for example {outcome.differ[0]}"
        )
    if not outcome.agree:
        _log.warning("nothing above score %s was found, so nothing was compared", SCORE)


def _validation(cfg: Config) -> Any:
    annotations = Path(cfg.validation.annotations)
    if not annotations.is_file():
        raise InputError(f"{annotations}, to compare on, is missing: run `dvc repro data`, or export with --check 0")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools says how long it takes
        return DATASETS.build(cfg.validation.dataset)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ghm.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", required=True, help="a trained variant: runs/<variant>/seed_<n>/")
    parser.add_argument("--seed", type=int, help="which of its models; the first of `seeds` in params.yaml")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    parser.add_argument(
        "--check",
        type=int,
        nargs="?",
        default=IMAGES,
        const=IMAGES,
        metavar="IMAGES",
        help="images of the validation split to compare on (%(default)s), 0: do not compare",
    )
    arguments = parser.parse_args()
    if arguments.check < 0:
        raise InputError(f"--check must be 0 or greater, got {arguments.check}")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise InputError(f"--out must be a folder, {arguments.out} is a file")
    seed = params.load().seeds[0] if arguments.seed is None else arguments.seed
    export(arguments.variant, seed, arguments.out, arguments.check)


if __name__ == "__main__":
    run(main)
