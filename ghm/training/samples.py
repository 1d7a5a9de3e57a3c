"""What the data loader takes: the same batches from any step on; images that cannot be read are named, not replaced.

The random changes of an image depend on the seed, the epoch and the image alone. So neither the number of worker
processes nor a stop and a new start changes what a run sees, and no state of a worker needs to be kept.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from itertools import count as count_up
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.datasets.transforms import Resize as MMDetResize
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.dataset import pseudo_collate
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ghm.data.images import UnreadableError, decode
from ghm.errors import InputError
from ghm.registry import DATASETS, FUNCTIONS, TRANSFORMS
from ghm.training import randomness
from ghm.words import count

TRIES = 10  # with other random numbers, of a transform that may find nothing, as a crop without a box


@dataclass(frozen=True)
class Unreadable:
    """Stands in a list of samples for an image that cannot be read."""

    image: int | str  # its id in the annotations
    path: str
    reason: str

    def __str__(self) -> str:
        return f"image {self.image} ({self.path}): {self.reason}"


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Read `img_path`: uint8 [height, width, 3] in B, G, R under `img`.

    Raises:
        UnreadableError: the file is missing, or `ghm.data.images.decode` cannot read it.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        try:
            content = Path(results["img_path"]).read_bytes()
        except (OSError, ValueError) as error:  # a ValueError of a path that cannot be one
            raise UnreadableError(getattr(error, "strerror", None) or str(error)) from None
        results["img"] = image = decode(content)
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


@TRANSFORMS.register_module()
class Resize(MMDetResize):
    """mmdet's, which cannot scale an image to less than half a pixel: at least one pixel of each side is left."""

    def _resize_img(self, results: dict[str, Any]) -> None:
        image = results["img"]
        height, width = image.shape[:2]
        new_width, new_height = mmcv.rescale_size((width, height), results["scale"])
        if not self.keep_ratio or min(new_width, new_height) > 0:
            super()._resize_img(results)
            return
        size = max(1, new_width), max(1, new_height)
        resized: Any = mmcv.imresize(image, size, interpolation=self.interpolation, backend=self.backend)
        results["img"], results["img_shape"] = resized, resized.shape[:2]
        results["scale_factor"] = (size[0] / width, size[1] / height)
        results["keep_ratio"] = True


@TRANSFORMS.register_module()
class Augment(BaseTransform):
    """The transforms of `train.augment`, in their order. One that finds nothing in ten tries is left out.

    mmdet would take another image instead; then a stopped run could not go on with the same images.

    Args:
        transforms: configs, of mmdet's transforms or of `ghm.Torchvision`.
    """

    def __init__(self, transforms: Sequence[dict[str, Any]]) -> None:
        self.transforms: list[Any] = [TRANSFORMS.build({**each, "_scope_": "mmdet"}) for each in transforms]

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        for transform in self.transforms:
            tries = (transform(copy.deepcopy(results)) for _ in range(TRIES))
            results = next((changed for changed in tries if changed is not None), results)
        return results


@TRANSFORMS.register_module()
class Torchvision(BaseTransform):
    """A transform of `torchvision.transforms.v2`, on R, G, B; boxes that it leaves no pixel of are dropped.

    Args:
        name: of its class.
        arguments: of that.
    """

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        self.inner: Any = getattr(v2, name)(**arguments)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        pixels = np.clip(results["img"], 0, 255).round().astype(np.uint8)  # some of mmdet's leave floats
        image = tv_tensors.Image(torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1))
        size: Any = pixels.shape[:2]
        boxes: Any = tv_tensors.BoundingBoxes(results["gt_bboxes"].tensor, format="XYXY", canvas_size=size)  # type: ignore[call-overload]
        image, boxes = self.inner(image, boxes)
        box_N4 = torch.as_tensor(v2.functional.clamp_bounding_boxes(boxes))
        kept_N = ((box_N4[:, 2:] - box_N4[:, :2]) >= 1).all(1)
        results["img"] = np.ascontiguousarray(image.permute(1, 2, 0).numpy()[..., ::-1])
        results["img_shape"] = results["img"].shape[:2]
        results["gt_bboxes"] = HorizontalBoxes(box_N4[kept_N])
        for name in ("gt_bboxes_labels", "gt_ignore_flags"):
            results[name] = results[name][kept_N.numpy()]
        return results


@TRANSFORMS.register_module()
class Pack(BaseTransform):
    """The end of a training pipeline: a `Sample`."""

    def transform(self, results: dict[str, Any]) -> Any:
        own_N = ~np.asarray(results["gt_ignore_flags"], bool)  # crowds take no part
        return Sample(
            torch.from_numpy(np.ascontiguousarray(results["img"][..., ::-1])),
            results["gt_bboxes"].tensor[own_N].float(),
            torch.as_tensor(results["gt_bboxes_labels"][own_N], dtype=torch.int64),
            str(results["img_path"]),
        )


@dataclass(frozen=True)
class Sample:
    """A training image and its true boxes."""

    pixel_HW3: Tensor  # R, G, B; uint8, or float32 after a transform that leaves fractions
    box_N4: Tensor  # corners in pixels
    label_N: Tensor
    path: str


@DATASETS.register_module()
class Samples:
    """A data set of mmengine whose pipeline is seeded for each image, and begins with `ghm.LoadImage`.

    The transforms up to the first that is random are done once, where there is memory for what all images then are.

    Args:
        dataset: a data set of mmengine, or its config.
        seed: of the run.
        memory: bytes, 0 to read each image anew.
    """

    def __init__(self, dataset: Any, seed: int = 0, memory: int = 0) -> None:
        self.dataset: Any = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.seed = seed
        self.memory = memory
        transforms: list[Any] = self.dataset.pipeline.transforms
        is_random = (not isinstance(transform, _FIXED) for transform in transforms)
        first = next(compress(count_up(), is_random), len(transforms))
        self.fixed, self.random = transforms[:first], transforms[first:]
        self._kept: dict[int, Any] = {}

    @property
    def metainfo(self) -> dict[str, Any]:
        return self.dataset.metainfo

    def __len__(self) -> int:
        return len(self.dataset)

    def get_data_info(self, index: int) -> dict[str, Any]:
        """What the annotations say of an image."""
        return self.dataset.get_data_info(index)

    def __getitem__(self, key: int | tuple[int, int]) -> Any:
        """The sample of an image, by its index, or by epoch and index: what the pipeline ends with, or `Unreadable`."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        kept = self._kept.get(index)
        if kept is None:
            info = self.get_data_info(index)
            try:
                kept = _through(self.fixed, info)
            except UnreadableError as error:
                return Unreadable(info["img_id"], str(info["img_path"]), str(error))
            if _bytes(kept) * len(self) <= self.memory:
                self._kept[index] = kept
        if not self.random:
            return kept
        with randomness.undisturbed():
            randomness.seed(self.seed, epoch, index)
            return _through(self.random, copy.deepcopy(kept) if index in self._kept else kept)


_FIXED = (LoadImage, LoadAnnotations, Resize, Pack)


def _through(transforms: Sequence[Any], results: Any) -> Any:
    for transform in transforms:
        results = transform(results)
    return results


def _bytes(kept: Any) -> int:
    """Of the pixels of an image, in the middle of a pipeline or at its end."""
    return kept.pixel_HW3.nbytes if isinstance(kept, Sample) else kept["img"].nbytes


@FUNCTIONS.register_module()
def collate(samples: Sequence[Any]) -> dict[str, Any]:
    """mmengine's lists of inputs and data samples, without what cannot be read: that is in the list `unreadable`."""
    read = [sample for sample in samples if not isinstance(sample, Unreadable)]
    batch = dict(pseudo_collate(read)) if read else {"inputs": [], "data_samples": []}
    return {**batch, "unreadable": [sample for sample in samples if isinstance(sample, Unreadable)]}


class BadImages:
    """The images that could not be read, each counted once.

    Args:
        most: how many a run may leave out, `data.max_bad_images`.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.found: dict[str, str] = {}  # id -> what is wrong

    def add(self, unreadable: Sequence[Unreadable]) -> list[str]:
        """Count images and return a line for each that is new."""
        new = {str(image.image): str(image) for image in unreadable if str(image.image) not in self.found}
        self.found |= new
        return [f"left out: {text}" for text in new.values()]

    def require(self) -> None:
        """Raise InputError when there are more than a run may leave out."""
        if len(self.found) > self.most:
            shown = "; ".join(list(self.found.values())[:3]) + "; ..." * (len(self.found) > 3)
            raise InputError(
                f"{count(len(self.found), 'image')} cannot be read and data.max_bad_images is {self.most}: {shown}. "
                "Mend them, or raise data.max_bad_images to leave them out"
            )
