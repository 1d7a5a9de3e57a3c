"""The page on the data, `reports/data.md` with pictures in `reports/data/`: written before anything is trained."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ghm import data, files
from ghm.data import annotations
from ghm.data.annotations import Annotations
from ghm.data.manifest import SIZES
from ghm.inspection import figures, search, sheets
from ghm.inspection.anchors import NEGATIVE, POSITIVE, Boxes, Setting, best_iou, used
from ghm.inspection.search import percent
from ghm.params import Params
from ghm.report import tables
from ghm.report.style import look
from ghm.words import count

REPORTS = Path("reports")
LONG = 20  # classes from which their table is folded away
QUANTILES = (0.05, 0.5, 0.95)
DONE = "data.md is there, and what comes after it in dvc.yaml may begin.\n"  # never changes, or all weights were stale
QUALITY = 60  # of JPEG: the pages of the default are kept in git


def write(parameters: Params, root: Path = Path()) -> None:
    """Write `reports/data/`, then `reports/data.md`, and at last `reports/data.done`, below `root`.

    Raises:
        InputError: the data set is not there, or has nothing to train on.
    """
    manifest = data.read_manifest(parameters, root)
    contents = {
        split: annotations.read(data.annotation_file(parameters, split, root), Annotations)
        for split in ("train", *parameters.splits())
    }
    splits = {name: manifest["splits"][name] for name in contents}
    boxes = {split: used(content) for split, content in contents.items()}
    fit = search.judge(boxes["train"], Setting.of(parameters))
    blocks = [
        "# The data, before training",
        f"**{'Warning: ' * fit.is_bad}{fit.sentence()}.**",
        "## Images and boxes",
        _splits(splits, boxes, fit.present.image_scale),
        "Small, medium and large are COCO's, by the area in the images as they are: up to 32 x 32 and 96 x 96 pixels. "
        "The side of a box, the square root of its area, is that after resizing, in pixels.",
        _classes(splits, manifest["classes"]),
    ]
    with look(manifest["classes"]), files.whole_folder(root / REPORTS / "data") as folder:
        blocks += ["## Images with their true boxes"]
        picture = sheets.true_boxes(contents["train"], data.image_folder(parameters, "train", root))
        words = "The image with most boxes, then others with boxes, evenly spaced in the order of their ids."
        blocks += [_picture(picture, folder / "true_boxes.jpg", "Training images with their true boxes", words)]
        picture, shown, reached = sheets.batch(parameters, manifest)
        words = (
            "The first images of a training run with seed 0, turned back from the numbers that the network gets: with "
            "all random changes, and in grey what fills up a batch. White: true boxes. Blue: the anchors that stand "
            f"for them, with an IoU of {POSITIVE} or more; {reached} of {count(shown, 'box|boxes')} have any. Orange: "
            "the best anchor, or anchors, of a box that has none."
        )
        blocks += ["## What the network sees"]
        blocks += [_picture(picture, folder / "batch.jpg", "Training images as the network sees them", words)]
        settings = {"now": fit.present, **({"suggested": fit.suggested} if fit.suggested else {})}
        plot = figures.sizes(boxes["train"], settings)
        plot.save(folder, "sizes")
        blocks += ["## Anchors", plot.markdown("data/sizes"), _fits(boxes["train"], settings)]
    files.write_text(root / REPORTS / "data.md", "\n\n".join(blocks) + "\n")
    files.write_text(root / REPORTS / "data.done", DONE)


def _picture(picture: Image.Image, path: Path, title: str, words: str) -> str:
    picture.save(path, "JPEG", quality=QUALITY)
    return f"![{title}](data/{path.name})\n\n**{title}**. {words}"


def _splits(splits: dict[str, Any], boxes: dict[str, Boxes], scale: tuple[int, ...]) -> str:
    rows = []
    for name, split in splits.items():
        numbers = [split["images"], split["images_without_boxes"], split["boxes"]]
        numbers += [split["boxes_per_size"][size] for size in SIZES]
        side_N = np.sqrt(boxes[name].resized(scale).size_N2.prod(axis=1))
        sides = [f"{side:.0f}" if side >= 10 else f"{side:.1f}" for side in np.quantile(side_N, QUANTILES)]
        rows.append([name, *(f"{number:,}" for number in numbers), *sides])
    head = ["split", "images", "without boxes", "boxes", *SIZES]
    return tables.markdown([*head, *(f"side, {percent(share)}" for share in QUANTILES)], rows)


def _classes(splits: dict[str, Any], classes: list[str]) -> str:
    rows = [[name, *(f"{split['boxes_per_class'][name]:,}" for split in splits.values())] for name in classes]
    table = tables.markdown(["boxes of class", *splits], rows)
    if len(rows) <= LONG:
        return table
    return f"<details><summary>Boxes of {len(rows)} classes</summary>\n\n{table}\n\n</details>"


def _fits(boxes: Boxes, settings: dict[str, Setting]) -> str:
    rows = []
    for name, setting in settings.items():
        for words, aligned in (("by shape: centres are the same", True), ("where the anchors are", False)):
            best_N = best_iou(boxes, setting, aligned=aligned)
            below = [percent(float(np.mean(best_N < limit))) for limit in (POSITIVE, NEGATIVE)]
            rows.append([f"{name}, {words}", *(f"{value:.2f}" for value in np.quantile(best_N, QUANTILES)), *below])
    head = ["best IoU of a training box", *(percent(share) for share in QUANTILES)]
    return tables.markdown([*head, f"below {POSITIVE}", f"below {NEGATIVE}"], rows)
