"""How anchors fit other data sets, before and after `make fit`, and whether the head's assigner agrees.

    python -m benchmarks.anchors chess=/data/chess/train.json bccd=/data/bccd/train.json

Takes COCO files of training splits, and the anchors, levels and image scale of `params.yaml`. For each of them prints
the share of boxes without an anchor of IoU 0.5: by shape, where the anchors are, and of boxes to which mmdet's
MaxIoUAssigner gives none such, over all images. No image is read. Writes `benchmarks/results/anchors.json`.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from ghm import config, files, params
from ghm.data import annotations
from ghm.data.annotations import Annotations
from ghm.inspection import search
from ghm.inspection.anchors import PADDED, POSITIVE, Boxes, Setting, best_iou, missed, used
from ghm.inspection.sheets import matched
from ghm.params import Params
from ghm.training import run

RESULT = Path(__file__).parent / "results" / "anchors.json"


def unassigned(boxes: Boxes, image_N: np.ndarray, setting: Setting, parameters: Params) -> float:
    """The share of boxes to which the assigner of the head gives no anchor with an IoU of 0.5 or more."""
    model = replace(parameters.model, anchors=setting.anchors, levels=setting.levels)
    split = {"annotations": "", "folder": "", "images": 1, "images_without_boxes": 0}
    manifest = {"classes": ["box"], "splits": {"train": split, "val": split, "test": split}}
    cfg = config.build(replace(parameters, model=model), next(iter(parameters.variants)), manifest, None, 0)
    head: Any = MODELS.build(dict(cfg.model.bbox_head, train_cfg=cfg.model.train_cfg))
    resized, assigned = boxes.resized(setting.image_scale), 0
    for image in np.unique(image_N):
        chosen_N = image_N == image
        width, height = (np.ceil(resized.image_N2[chosen_N][0] / PADDED) * PADDED).astype(int).tolist()
        truth = torch.tensor(resized.corner_N4[chosen_N], dtype=torch.float32)
        _, iou_P, box_P = matched(head, truth, torch.tensor([height, width]), (height, width))
        assigned += len(np.unique(box_P[iou_P >= POSITIVE]))
    return 1 - assigned / len(boxes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="NAME=FILE")
    init_default_scope("mmdet")
    parameters, rows = params.load(), list[dict[str, Any]]()
    present = Setting.of(parameters)
    for name, _, path in (entry.partition("=") for entry in parser.parse_args().sets):
        content = annotations.read(Path(path), Annotations)
        boxes, image_N = used(content), np.array([box.image_id for box in content.annotations])
        assert len(boxes) == len(image_N), f"{path} has boxes that are not trained on, or too many"
        fit = search.judge(boxes, present)
        row = {"set": name, "boxes": len(boxes), "times the pixels": fit.times}
        for when, setting in {"now": present, "suggested": fit.suggested or present}.items():
            row |= {f"{when}: {key.rpartition('.')[2]}": value for key, value in setting.values().items()}
            row[f"{when} by shape"] = float((best_iou(boxes, setting, aligned=True) < POSITIVE).mean())
            row[f"{when} where they are"] = missed(boxes, setting)
            row[f"{when} assigned"] = unassigned(boxes, image_N, setting, parameters)
        rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
        print(pd.Series(rows[-1]).to_string(), end="\n\n")
    files.write_json(RESULT, {"versions": run.context()["versions"], "rows": rows})


if __name__ == "__main__":
    main()
