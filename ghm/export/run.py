"""A run as an ONNX graph that finds what PyTorch finds, and in mmdet's own types.

Shapes: N detections of PyTorch, M of ONNX.
"""

import copy
import json
import logging
import tempfile
from pathlib import Path

import numpy as np
from mmengine.config import Config
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from tqdm import tqdm

from ghm import checkpoints
from ghm.detect.detector import Detector, find_run, operating_point
from ghm.errors import InputError
from ghm.export import onnx_model
from ghm.predict import Detections, load, predict
from ghm.runs import CONFIG, MODEL
from ghm.training.samples import collate
from ghm.training.validation import ValidationSample
from ghm.words import count

ONNX = "model.onnx"
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
    config, checkpoint = find_run(variant, seed)
    detector = Detector.open(config, checkpoint, 1.0, device="cpu")
    cfg = plain_config(detector.cfg)
    model = load(cfg, checkpoint, "mmdet's RetinaNet", "cpu")
    resize, test_cfg = detector.cfg.test_dataloader.dataset.dataset.pipeline[1], detector.model.test_cfg
    metadata = {
        "classes": detector.classes,
        "image_scale": list(resize.scale),  # [long, short] side in pixels at most
        "keep_ratio": resize.keep_ratio,
        "score_threshold": test_cfg.score_thr,
        "nms_iou": test_cfg.nms.iou_threshold,
        "max_per_image": test_cfg.max_per_img,
    }
    if point := operating_point(variant, seed):
        cfg["operating_point"] = point  # `ghm.detect --config` reads it
        metadata["operating_score"] = point["score"]
    else:
        _log.warning("%s is not evaluated: no score of the best F1 is exported", variant)
    said = {"variant": variant, "seed": str(seed), **{name: json.dumps(value) for name, value in metadata.items()}}
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as name:
        folder = Path(name)
        (folder / CONFIG).write_text(cfg.pretty_text, encoding="utf-8")
        meta = {"dataset_meta": {"classes": detector.classes, "category_ids": detector.category_ids}}
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        checkpoints.write({"state_dict": state, "meta": meta}, folder / MODEL)
        onnx_model.write(model, said, folder / ONNX)
        if images:
            require_same(detector, folder / ONNX, images)
        for file in (ONNX, CONFIG, MODEL):
            (folder / file).replace(out / file)
    _log.info("%s, %s and %s are in %s", ONNX, CONFIG, MODEL, out)


def plain_config(cfg: Config) -> Config:
    """The config of a run in mmdet's own types: the model, and its test on the split that the run is reported on."""
    model, loader, evaluator = (copy.deepcopy(cfg[name]) for name in ("model", "test_dataloader", "test_evaluator"))
    model.backbone.init_cfg = None
    model.bbox_head.type = "RetinaHead"
    if model.bbox_head.norm_cfg:
        model.bbox_head.norm_cfg.type = model.bbox_head.norm_cfg.type.replace("ghm.GroupNorm", "GN")
    for role in ("loss_cls", "loss_bbox"):  # no detection depends on a loss; mmdet has usual ones of its own
        if model.bbox_head[role].type.startswith("ghm."):
            del model.bbox_head[role]
    loader.dataset = loader.dataset.dataset
    del loader.collate_fn
    load, resize, pack = loader.dataset.pipeline
    load.type, resize.type = "LoadImageFromFile", "Resize"
    loader.dataset.pipeline = [load, resize, {"type": "LoadAnnotations", "with_bbox": True}, pack]
    return Config(
        {
            "default_scope": "mmdet",
            "model": model,
            "test_dataloader": loader,
            "test_cfg": {"type": "TestLoop"},
            "test_evaluator": evaluator,
            "visualizer": {"type": "DetLocalVisualizer"},
            "work_dir": "work_dirs",
            "load_from": "{{ fileDirname }}/" + MODEL,  # mmengine puts the folder of the config there
        }
    )


def require_same(detector: Detector, graph: Path, images: int) -> None:
    """Compare the graph with PyTorch on evenly spaced images of the validation split of the run.

    Raises:
        InputError: the split is not there, or more than `ALLOWED` of the detections have no like on the other side.
    """
    annotations = Path(detector.cfg.validation.annotations)
    if not annotations.is_file():
        raise InputError(f"{annotations}, to compare on, is missing: run `dvc repro data`, or export with --check 0")
    detector.cfg.validation.images = images
    split, run = ValidationSample(detector.cfg), onnx_model.runtime(graph)
    total = alone = 0
    for index in tqdm(split.chosen, desc="compared", unit="image", disable=None):
        packed = split.dataset[index]
        for sample, pytorch in predict(detector.model, [collate([packed])]):
            onnx = run(packed["inputs"].flip(0)[None].float().numpy())
            onnx = Detections(onnx.box_N4 / np.tile(sample.scale_factor, 2), onnx.score_N, onnx.label_N)
            pytorch, onnx = pytorch.above(SCORE), onnx.above(SCORE)
            detections = len(pytorch.score_N) + len(onnx.score_N)
            total, alone = total + detections, alone + detections - 2 * alike(pytorch, onnx, max(sample.ori_shape))
    compared = f"{count(alone, 'detection')} of {total:,} on {count(len(split.chosen), 'image')}"
    if alone > ALLOWED * total:
        raise InputError(f"ONNX and PyTorch differ in {compared}, and nothing is written")
    _log.info("ONNX and PyTorch differ in %s, of score %s or more", compared, SCORE)


def alike(pytorch: Detections, onnx: Detections, side: int) -> int:
    """How many detections have a like on the other side, one each; `side` is the image's longer one, in pixels."""
    score_NM = np.abs(pytorch.score_N[:, None] - onnx.score_N)
    box_NM = np.abs(pytorch.box_N4[:, None] - onnx.box_N4).max(axis=2) / side
    like_NM = (pytorch.label_N[:, None] == onnx.label_N) & (score_NM <= TOLERANCE) & (box_NM <= TOLERANCE)
    return int((maximum_bipartite_matching(csr_array(like_NM)) >= 0).sum())
