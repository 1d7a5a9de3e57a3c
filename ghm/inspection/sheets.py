"""Contact sheets: true boxes on images of the data set, and the images of a batch as the network sees them."""

import io
from collections import defaultdict
from collections.abc import Sequence
from contextlib import redirect_stdout
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from PIL import Image, ImageDraw
from torch import Tensor

from ghm import config, drawing
from ghm.data.annotations import Annotations
from ghm.data.images import UnreadableError, decode
from ghm.inspection.anchors import POSITIVE
from ghm.params import Params
from ghm.report import names
from ghm.training import batches
from ghm.training.processes import Processes

CELL, COLUMNS, GAP = 470, 3, 8  # pixels a side, cells in a row, pixels between them
CELLS = 6
GOOD, FORCED = "#56B4E9", "#D55E00"  # anchors of IoU 0.5 or more, and the best one of a box that has none


def true_boxes(content: Annotations, folder: Path) -> Image.Image:
    """The image with most boxes, and others with boxes, evenly spaced in the order of their ids."""
    boxes = defaultdict(list)
    for box in content.annotations:
        boxes[box.image_id].append(box)
    classes = {entry.id: number for number, entry in enumerate(content.categories)}
    colours, texts = drawing.palette(len(classes)), [names.line(entry.name) for entry in content.categories]
    cells = []
    for image in _spread([image for image in content.images if image.id in boxes], boxes):
        try:
            pixels = decode((folder / image.file_name).read_bytes())
        except (OSError, UnreadableError):  # `data.max_bad_images` allows it, and the manifest names it
            continue
        cell, factor = _cell(Image.fromarray(pixels[..., ::-1]))
        found = [(box.bbox, classes[box.category_id]) for box in boxes[image.id]]
        corner_N4 = factor * np.array([(x, y, x + width, y + height) for (x, y, width, height), _ in found])
        labels = [label for _, label in found]
        drawing.draw(cell, corner_N4, [texts[label] for label in labels], [colours[label] for label in labels])
        cells.append(cell)
    return _sheet(cells)


def _spread(images: list[Any], boxes: dict[Any, list[Any]]) -> list[Any]:
    if len(images) <= CELLS:
        return images
    most = max(images, key=lambda image: len(boxes[image.id]))
    others = sorted((image for image in images if image is not most), key=lambda image: image.id)
    return [most, *(others[round(place)] for place in np.linspace(0, len(others) - 1, CELLS - 1))]


def batch(parameters: Params, manifest: dict[str, Any]) -> tuple[Image.Image, int, int]:
    """The first images of a training run with seed 0, turned back from what the network gets, with true boxes and the
    anchors that the head's assigner gives to them.

    Returns:
        The sheet, the boxes on it, and how many of these have an anchor with IoU 0.5 or more.
    """
    cfg = config.build(parameters, next(iter(parameters.variants)), manifest, None, seed=0)
    init_default_scope("mmdet")
    cfg.train_dataloader.update(batch_size=min(CELLS, parameters.train.batch_size), num_workers=0)
    cfg.accumulate = 1
    detector: Any = MODELS.build(cfg.model)
    processor = detector.data_preprocessor
    cells, boxes, reached = [], 0, 0
    with redirect_stdout(io.StringIO()):  # pycocotools
        loader = batches.loader(cfg, Processes())
    for loaded in loader:
        ready_B3HW, truth = batches.prepare(detector, loaded)
        for number, input_3HW in enumerate(ready_B3HW):
            box_N4 = truth.box_BG4[number, truth.label_BG[number] >= 0]
            anchor_P4, iou_P, box_P = matched(detector.bbox_head, box_N4, truth.size_B2[number], input_3HW.shape[-2:])
            boxes, reached = boxes + len(box_N4), reached + len(np.unique(box_P[iou_P >= POSITIVE]))
            pixels = (input_3HW * processor.std + processor.mean).round().clamp(0, 255).byte()
            cell, factor = _cell(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
            canvas = ImageDraw.Draw(cell)
            for corners, iou in zip((factor * anchor_P4).tolist(), iou_P, strict=True):
                canvas.rectangle(corners, outline=GOOD if iou >= POSITIVE else FORCED)
            drawing.draw(cell, factor * box_N4.numpy(), [""] * len(box_N4), ["#FFFFFF"] * len(box_N4))
            cells.append(cell)
            if len(cells) == CELLS:
                return _sheet(cells), boxes, reached
    return _sheet(cells), boxes, reached


def matched(
    head: Any, box_N4: Tensor, size: Tensor, padded: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The anchors that stand for the boxes of an image in training, by the head's own assigner.

    Args:
        head: `ghm.head.GHMRetinaHead`.
        box_N4: corners in pixels.
        size: height and width of the image, as a multiple of 32.
        padded: height and width of the batch.

    Returns:
        Corners of P anchors in pixels, [P, 4], the IoU of each with its box, and the number of that box, from 0.
    """
    maps = [(ceil(padded[0] / y), ceil(padded[1] / x)) for x, y in head.prior_generator.strides]
    anchors, flags = head.get_anchors(maps, [{"pad_shape": tuple(size.tolist())}], device="cpu")
    anchor_A4 = torch.cat(anchors[0])[torch.cat(flags[0])]
    truth = InstanceData(bboxes=box_N4, labels=torch.zeros(len(box_N4), dtype=torch.int64))
    box_A = head.assigner.assign(InstanceData(priors=anchor_A4), truth).gt_inds - 1
    anchor_P4, box_P = anchor_A4[box_A >= 0], box_A[box_A >= 0]
    # Not the assigner's `max_overlaps`: that of a forced anchor may be with another box.
    iou_P = bbox_overlaps(anchor_P4, box_N4[box_P], is_aligned=True)
    return anchor_P4.numpy(), iou_P.numpy(), box_P.numpy()


def _cell(picture: Image.Image) -> tuple[Image.Image, float]:
    """The picture as large as fits a cell, and how much larger it was made; of small ones, the pixels show."""
    factor = CELL / max(picture.size)
    factor, way = (factor // 1, Image.Resampling.NEAREST) if factor >= 2 else (factor, Image.Resampling.LANCZOS)
    return picture.resize([max(1, round(factor * side)) for side in picture.size], way), factor


def _sheet(cells: Sequence[Image.Image]) -> Image.Image:
    """Cells side by side, each in the middle of its place."""
    width, height = (max((cell.size[axis] for cell in cells), default=CELL) + GAP for axis in (0, 1))
    columns, rows = min(COLUMNS, max(1, len(cells))), ceil(max(1, len(cells)) / COLUMNS)
    sheet = Image.new("RGB", (columns * width - GAP, rows * height - GAP), "white")
    for number, cell in enumerate(cells):
        row, column = divmod(number, COLUMNS)
        middle = ((width - GAP - cell.width) // 2, (height - GAP - cell.height) // 2)
        sheet.paste(cell, (column * width + middle[0], row * height + middle[1]))
    return sheet
