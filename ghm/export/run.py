"""A run as an ONNX graph that finds what PyTorch finds, and in mmdet's own types.

Shapes: N detections of PyTorch, M of ONNX.
"""

import contextlib
import copy
import io
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import MODELS
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from tqdm import tqdm

from ghm import checkpoints
from ghm.detect.detector import Detector, find_run
from ghm.errors import InputError
from ghm.export import onnx_model
from ghm.predict import Detections, predict
from ghm.registry import DATASETS
from ghm.runs import CONFIG, MODEL
from ghm.training.samples import BadImages, collate
from ghm.words import count

ONNX = "model.onnx"
# In place of our losses, for no detection depends on a loss: mmdet's GHM would want its counts in the state dict, and
# has not all options of ours.
USUAL: dict[str, dict[str, Any]] = {
    "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
    "loss_bbox": {"type": "SmoothL1Loss", "beta": 0.11, "loss_weight": 1.0},
}
SCORE = 0.05  # detections above it are compared
TOLERANCE = 1e-4  # of scores, and of corners as a share of the image's longer side
ALLOWED = 0.01  # share of detections that rounding may decide: whether they are kept, and which of two like ones is
_log = logging.getLogger(__name__)


def export(variant: str, seed: int, out: Path, images: int) -> None:
    """Write `out/model.onnx`, `out/config.py` and `out/model.pth`.

    Args:
        images: of the validation split to compare on, evenly spaced; 0: none.

    Raises:
        InputError: the run or, for the comparison, its validation split is not there, or the graph differs.
    """
    detector = Detector.open(*find_run(variant, seed), device="cpu")
    cfg = plain_config(detector.cfg, variant)
    model: Any = MODELS.build(copy.deepcopy(cfg.model)).eval()
    weights, report = checkpoints.select(detector.model.state_dict(), model.state_dict())
    report.require("the run does not fit mmdet's RetinaNet")
    model.load_state_dict(weights)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as name:
        folder = Path(name)
        text = f"# RetinaNet of the variant {variant}, in the types of mmdet 3.\n{cfg.pretty_text}"
        (folder / CONFIG).write_text(text, encoding="utf-8")
        meta = {"dataset_meta": {"classes": detector.classes, "category_ids": detector.category_ids}}
        state = {name: value.contiguous() for name, value in weights.items()}
        checkpoints.write({"state_dict": state, "meta": meta}, folder / MODEL)
        onnx_model.write(model, _metadata(detector, variant, seed), folder / ONNX)
        if images:
            require_same(detector, onnx_model.Runtime(folder / ONNX), images)
        for file in (ONNX, CONFIG, MODEL):
            (folder / file).replace(out / file)
    _log.info("%s, %s and %s are in %s", ONNX, CONFIG, MODEL, out)


def plain_config(cfg: Config, variant: str) -> Config:
    """The config of a run in mmdet's own types: the model, and its test on the split that the run is reported on."""
    model, loader, evaluator = (copy.deepcopy(cfg[name]) for name in ("model", "test_dataloader", "test_evaluator"))
    model.backbone.init_cfg = None
    model.bbox_head.type = "RetinaHead"
    for role, usual in USUAL.items():
        if model.bbox_head[role].type.startswith("ghm."):
            model.bbox_head[role] = dict(usual)
    loader.dataset = loader.dataset.dataset
    del loader.collate_fn
    load, resize, pack = loader.dataset.pipeline
    load.type, resize.type = "LoadImageFromFile", "Resize"
    loader.dataset.pipeline = [load, resize, {"type": "LoadAnnotations", "with_bbox": True}, pack]
    evaluator.format_only = False
    return Config(
        {
            "default_scope": "mmdet",
            "model": model,
            "test_dataloader": loader,
            "test_cfg": {"type": "TestLoop"},
            "test_evaluator": evaluator,
            "visualizer": {"type": "DetLocalVisualizer"},
            "work_dir": f"work_dirs/{variant}",
            "load_from": "{{ fileDirname }}/" + MODEL,  # mmengine puts the folder of the config there
        }
    )


def _metadata(detector: Detector, variant: str, seed: int) -> dict[str, str]:
    _, resize, _ = detector.cfg.test_dataloader.dataset.dataset.pipeline
    test_cfg = detector.model.test_cfg
    content = {
        "classes": detector.classes,
        "image_scale": list(resize.scale),  # [long, short] side in pixels at most
        "keep_ratio": resize.keep_ratio,
        "score_threshold": test_cfg.score_thr,
        "nms_iou": test_cfg.nms.iou_threshold,
        "max_per_image": test_cfg.max_per_img,
    }
    return {"variant": variant, "seed": str(seed), **{name: json.dumps(value) for name, value in content.items()}}


def require_same(detector: Detector, runtime: onnx_model.Runtime, images: int) -> None:
    """Compare the graph with PyTorch on evenly spaced images of the validation split of the run.

    Raises:
        InputError: the split is not there, or more than `ALLOWED` of the detections have no like on the other side.
    """
    annotations = Path(detector.cfg.validation.annotations)
    if not annotations.is_file():
        raise InputError(f"{annotations}, to compare on, is missing: run `dvc repro data`, or export with --check 0")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools says how long it takes
        dataset = DATASETS.build(detector.cfg.validation.dataset)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(images, len(dataset))).astype(int)).tolist()
    bad_images = BadImages(len(chosen))
    total = alone = 0
    for index in tqdm(chosen, desc="compared", unit="image", disable=None):
        packed = dataset[index]
        for sample, pytorch in predict(detector.model, [collate([packed])], bad_images):
            onnx = runtime(packed["inputs"].flip(0)[None].float().numpy())
            onnx = Detections(onnx.box_N4 / np.tile(sample.scale_factor, 2), onnx.score_N, onnx.label_N)
            pytorch, onnx = pytorch.above(SCORE), onnx.above(SCORE)
            detections = len(pytorch.score_N) + len(onnx.score_N)
            total, alone = total + detections, alone + detections - 2 * alike(pytorch, onnx, max(sample.ori_shape))
    compared = f"{count(alone, 'detection')} of {total:,} on {count(len(chosen), 'image')}"
    if alone > ALLOWED * total:
        raise InputError(f"ONNX and PyTorch differ in {compared}, and nothing is written")
    _log.info("ONNX and PyTorch differ in %s, of score %s or more", compared, SCORE)


def alike(pytorch: Detections, onnx: Detections, side: int) -> int:
    """How many detections have a like on the other side, one each; `side` is the image's longer one, in pixels."""
    score_NM = np.abs(pytorch.score_N[:, None] - onnx.score_N)
    box_NM = np.abs(pytorch.box_N4[:, None] - onnx.box_N4).max(axis=2) / side
    like_NM = (pytorch.label_N[:, None] == onnx.label_N) & (score_NM <= TOLERANCE) & (box_NM <= TOLERANCE)
    return int((maximum_bipartite_matching(csr_array(like_NM)) >= 0).sum())
