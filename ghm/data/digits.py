"""The embedded data set `digits`: real handwritten digits composed into photographs, as COCO files.

Source: scikit-learn's `load_digits` (1797 scans of 8x8) and `load_sample_images` (two photographs). Digits and photo
regions of one split are never used in another.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ghm.data import digits_render as render
from ghm.data.noise import Noise
from ghm.files import write_json
from ghm.params import Digits

CLASSES: tuple[str, ...] = tuple("0123456789")
SPLITS = ("train", "val", "test")
JPEG_QUALITY = 92  # JPEG and not PNG, whose bytes depend on the processor: zlib-ng takes other matches there

# First keys of the random streams: a picture depends on its split and its number, not on how many there are.
_PICTURES, _CROPS, _CLUTTER = range(3)

# Columns of a photo for each split, in shares of its width; each split sees sky, trees, building and flower.
_STRIPS = {"train": ((0.0, 0.4), (0.7, 1.0)), "val": ((0.4, 0.55),), "test": ((0.55, 0.7),)}

_INFO = {
    "description": "Handwritten digits composed into photographs, with clutter that looks like handwriting",
    "sources": [
        "digits: UCI Machine Learning Repository, Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, "
        "1998), doi.org/10.24432/C50P49, CC BY 4.0, as in scikit-learn's load_digits",
        "photos: scikit-learn's sample images china.jpg (danielbuechele, flickr.com/photos/danielbuechele/6061409035) "
        "and flower.jpg (vultilion, flickr.com/photos/vultilion/6056698931), CC BY 2.0",
    ],
    "version": "2",
}
_LICENSES = [
    {"id": 1, "name": "CC BY 4.0", "url": "https://creativecommons.org/licenses/by/4.0/"},
    {"id": 2, "name": "CC BY 2.0", "url": "https://creativecommons.org/licenses/by/2.0/"},
]


def split_digits(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Divide 60 / 20 / 20 within each label: split -> sorted indices, int64.

    In the order of the file, not at random: scans of one writer lie together there, so that few writers are in two
    splits.
    """
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for label in np.unique(labels):
        indices = np.flatnonzero(labels == label)
        cuts = [round(0.6 * len(indices)), round(0.8 * len(indices))]
        for split, part in zip(SPLITS, np.split(indices, cuts), strict=True):
            parts[split].append(part)
    return {split: np.sort(np.concatenate(part)) for split, part in parts.items()}


def split_photos(photos: Sequence[np.ndarray]) -> dict[str, tuple[np.ndarray, ...]]:
    """Cut photos, each [H, W, 3], into upright strips: split -> views that share no pixel with another split's."""
    return {
        split: tuple(
            photo[:, round(left * photo.shape[1]) : round(right * photo.shape[1])]
            for photo in photos
            for left, right in ranges
        )
        for split, ranges in _STRIPS.items()
    }


def material(split: str, seed: int) -> render.Material:
    """The digits and photo regions that belong to a split, and clutter made of these digits."""
    from sklearn.datasets import load_digits, load_sample_images  # not before: it takes seconds

    scans: Any = load_digits()
    photos = load_sample_images().images
    indices = split_digits(scans.target)[split]
    patterns = scans.images[indices].astype(np.uint8)
    clutter = render.clutter_patterns(_generator(seed, _CLUTTER, SPLITS.index(split)), patterns)
    return render.Material(patterns, scans.target[indices].astype(np.int64), clutter, split_photos(photos)[split])


def picture(
    seed: int, split: str, number: int, source: render.Material, side: int
) -> tuple[np.ndarray, list[render.Sprite]]:
    """Make picture `number` (from 1) of a split.

    Returns:
        RGB uint8 [side, side, 3], and the digits on it as `Sprite`s.
    """
    rng = _generator(seed, _PICTURES, SPLITS.index(split), number)
    canvas = render.background(rng, source.strips, side, side / render.REFERENCE_SIDE)
    sprites = render.layout(rng, source, side)
    render.draw(rng, canvas, sprites)
    return render.develop(rng, canvas), [sprite for sprite in sprites if sprite.label != render.CLUTTER]


def write(digits: Digits, noise: Noise, root: Path) -> None:
    """Write `root/annotations/instances_{train,val,test}.json` and `root/{train,val,test}/000001.jpg`, ...

    With the same libraries and arguments every byte is the same, on every processor. Only the training boxes and their
    classes depend on `noise`.
    """
    for split in SPLITS:
        content = _write_split(digits, split, root / split)
        if split == "train":
            noise.apply(content)
        write_json(root / "annotations" / f"instances_{split}.json", content)


def crops(digits: Digits, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Make crops to train a classifier with, from the digits and photo regions of the training split alone.

    The classes take turns, and crop i does not depend on `count`. Strokes have the size that they have in the
    pictures, and up to two pieces of clutter lie beside a digit or, for class 10, on the empty background.

    Returns:
        RGB uint8 [count, size, size, 3], and labels int64 [count]: 0..9 the digit in the crop, 10 none.
    """
    source = material("train", digits.seed)
    of_label = [
        dataclasses.replace(source, patterns=source.patterns[chosen], labels=source.labels[chosen])
        for chosen in (source.labels == label for label in range(len(CLASSES)))
    ]
    scale = digits.image_size / render.REFERENCE_SIDE
    labels = np.arange(count, dtype=np.int64) % (len(CLASSES) + 1)
    images = np.empty((count, size, size, 3), np.uint8)
    for i in tqdm(range(count), desc="digit crops", unit="crop", disable=None):
        rng = _generator(digits.seed, _CROPS, i)
        canvas = render.background(rng, source.strips, size, scale)
        shown = of_label[labels[i]] if labels[i] < len(CLASSES) else None
        render.draw(rng, canvas, render.crop_layout(rng, source, shown, size, scale))
        images[i] = render.develop(rng, canvas)
    return images, labels


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _write_split(digits: Digits, split: str, folder: Path) -> dict[str, Any]:
    """Write the pictures of a split into a new folder and return its COCO annotations."""
    folder.mkdir(parents=True)
    source = material(split, digits.seed)
    count = {"train": digits.train_images, "val": digits.val_images, "test": digits.test_images}[split]
    side = digits.image_size
    images: list[dict[str, Any]] = []
    shown: list[tuple[int, render.Sprite]] = []
    for number in tqdm(range(1, count + 1), desc=f"digits {split}", unit="image", disable=None):
        photo, sprites = picture(digits.seed, split, number, source, side)
        name = f"{number:06d}.jpg"
        Image.fromarray(photo).save(folder / name, quality=JPEG_QUALITY)
        images.append({"id": number, "file_name": name, "width": side, "height": side})
        shown += [(number, sprite) for sprite in sprites]
    return {
        "info": _INFO,
        "licenses": _LICENSES,
        "categories": [{"id": i + 1, "name": name, "supercategory": "digit"} for i, name in enumerate(CLASSES)],
        "images": images,
        "annotations": [
            {
                "id": i,
                "image_id": number,
                "category_id": int(sprite.label) + 1,
                "bbox": list(sprite.box),
                "area": sprite.box[2] * sprite.box[3],
                "iscrowd": 0,
                "segmentation": [],
            }
            for i, (number, sprite) in enumerate(shown, start=1)
        ],
    }
