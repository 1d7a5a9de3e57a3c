"""`train.augment`: transforms of mmdet and torchvision by name, checked, and their place in the training pipeline."""

import difflib
import inspect
import re
from typing import Any

import numpy as np
import torch

from ghm import sections
from ghm.errors import InputError
from ghm.params import Train

TORCHVISION = "torchvision."
# A transform with such a name takes the place of the resizing to `train.image_scale`.
RESIZES = re.compile("Resize|ScaleJitter|ShortestS")
DRAWS = 20  # of each transform on an image, for most of them do something only now and then


def pipeline(train: Train, resize: dict[str, Any]) -> list[dict[str, Any]]:
    """The transforms between loading and flipping: those of `train.augment`, and `resize` unless one of them resizes.

    Raises:
        InputError: see `configs`.
    """
    transforms = configs(train)
    resizes = any(RESIZES.search(each["type"]) for each in train.augment)
    return [dict(type="ghm.Augment", transforms=transforms)] * bool(transforms) + [resize] * (not resizes)


def configs(train: Train) -> list[dict[str, Any]]:
    """`train.augment` as mmengine's configs, tried on an image with a box.

    Raises:
        InputError: there is no such transform, its arguments are wrong, or it leaves something else than an image with
            8 bits per channel and its boxes.
    """
    if not train.augment:
        return []
    from ghm.registry import TRANSFORMS
    from ghm.training import randomness

    found = [_config(f"train.augment[{number}]", each) for number, each in enumerate(train.augment)]
    with randomness.undisturbed():
        randomness.seed(0)
        examples = [_example() for _ in range(DRAWS)]
        for number, config in enumerate(found):
            key, given = f"train.augment[{number}]", train.augment[number]
            try:
                transform: Any = TRANSFORMS.build(dict(type="ghm.Augment", transforms=[config]))
                examples = [transform(example) for example in examples]
            except Exception as error:  # whatever a transform of others does with arguments that it was not made for
                said = str(error).strip().splitlines()
                reason = said[-1] if said else type(error).__name__
                raise InputError(f"{key} must be a transform that works on an image, got {given}: {reason}") from None
            if fault := next(filter(None, map(_fault, examples)), None):
                raise InputError(f"{key} must leave an image and its boxes, got {given}, which leaves {fault}")
    return found


def _config(key: str, given: dict[str, Any]) -> dict[str, Any]:
    """An entry of `train.augment` as mmengine's config, its names checked."""
    from mmdet.datasets import transforms  # noqa: F401  (registers them)
    from mmdet.registry import TRANSFORMS
    from torchvision.transforms import v2

    arguments = {name: _sizes(value) for name, value in given.items() if name != "type"}
    name = given.get("type")
    theirs = [each for each, cls in vars(v2).items() if inspect.isclass(cls) and issubclass(cls, v2.Transform)]
    mmdets = {**TRANSFORMS.parent.module_dict, **TRANSFORMS.module_dict}  # type: ignore[union-attr]
    known = [*mmdets, *(TORCHVISION + each for each in theirs)]
    if name not in known:
        near = difflib.get_close_matches(str(name), known, 3) or [each for each in known if each.endswith(f".{name}")]
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"{key}.type must be a transform of mmdet, or torchvision.<name> of it, got {name!r}{meant}")
    is_mmdets = name in mmdets
    cls: Any = mmdets[name] if is_mmdets else getattr(v2, name.removeprefix(TORCHVISION))
    if name.startswith("Cached") or inspect.getattr_static(cls, "get_indexes", None):
        raise InputError(f"{key}.type: {name} mixes images, and a transform is given one: leave it out")
    parameters = inspect.signature(cls).parameters
    takes_all = any(each.kind == each.VAR_KEYWORD for each in parameters.values())
    if unknown := [each for each in arguments if each not in parameters and not takes_all]:
        raise InputError("\n".join(sections.unknown(f"{key}.{each}", given[each], parameters) for each in unknown))
    if is_mmdets:
        return {"type": name, **arguments}
    return {"type": "ghm.Torchvision", "name": name.removeprefix(TORCHVISION), "arguments": arguments}


def _sizes(value: Any) -> Any:
    """An argument from YAML: a list of whole numbers is the tuple that mmdet asks for, also inside of others."""
    if isinstance(value, dict):
        return {name: _sizes(item) for name, item in value.items()}
    if isinstance(value, list):
        items = [_sizes(item) for item in value]
        return tuple(items) if items and all(type(item) is int for item in items) else items
    return value


def _example() -> dict[str, Any]:
    """What transforms are given: an image of noise with a box."""
    from mmdet.structures.bbox import HorizontalBoxes

    image = np.random.randint(0, 256, (96, 128, 3), np.uint8)
    return dict(
        img=image,
        img_shape=image.shape[:2],
        ori_shape=image.shape[:2],
        gt_bboxes=HorizontalBoxes(torch.tensor([[16.0, 16.0, 112.0, 80.0]])),
        gt_bboxes_labels=np.array([0]),
        gt_ignore_flags=np.array([False]),
    )


def _fault(results: Any) -> str | None:
    """What is wrong with the results of a transform; None where it is what the next one can be given."""
    image = results.get("img") if isinstance(results, dict) else None
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3:
        return "no image of three channels"
    if image.dtype not in (np.uint8, np.float32) or image.mean() < 4:  # of noise from 0 to 255 not so much is black
        return "pixels that are not from 0 to 255: the pipeline normalises them itself"
    if tuple(results["img_shape"]) != image.shape[:2]:
        return "an image of another size than it says"
    boxes, labels, ignored = (results.get(name) for name in ("gt_bboxes", "gt_bboxes_labels", "gt_ignore_flags"))
    if not hasattr(boxes, "tensor") or not len(boxes) == len(labels) == len(ignored):  # type: ignore[arg-type]
        return "boxes that do not belong to their labels"
    return None
