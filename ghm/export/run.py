"""A run as an ONNX graph, and in mmdet's own types."""

import copy
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from ghm import checkpoints
from ghm.detect.detector import Detector, find_run
from ghm.export import onnx_model
from ghm.export.check import require_same
from ghm.runs import CONFIG, MODEL

ONNX = "model.onnx"
# In place of our losses, for no detection depends on a loss: mmdet's GHM would want its counts in the state dict, and
# has not all options of ours.
USUAL: dict[str, dict[str, Any]] = {
    "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
    "loss_bbox": {"type": "SmoothL1Loss", "beta": 0.11, "loss_weight": 1.0},
}
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
            "visualizer": {
                "type": "DetLocalVisualizer",
                "vis_backends": [{"type": "LocalVisBackend"}],
                "name": "visualizer",
            },
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
