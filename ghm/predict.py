"""The one way to run a detector: a checkpoint and batches of images -> boxes, scores and classes.

Shapes: N detections of an image.
"""

import copy
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

from ghm import checkpoints, devices
from ghm.errors import InputError

if TYPE_CHECKING:
    from ghm.training.samples import BadImages

WAITING = 4  # batches of images, at most, that wait for others of their size
_log = logging.getLogger(__name__)


def load(cfg: Config, checkpoint: Path, described_in: str, device: Any = None) -> Any:
    """Build the detector of a config and give it the weights of a checkpoint.

    Args:
        cfg: mmdet's. `speed`, which our runs have, says whether CUDA rounds to TF32 and how weights lie in memory.
        checkpoint: only tensors are read. A detector needs no state of its losses.
        described_in: where the config is from, for messages.
        device: CUDA where there is one, or else the CPU.

    Returns:
        mmdet's detector in evaluation mode.

    Raises:
        InputError: mmdet cannot build the model, or the checkpoint is no checkpoint or does not fit.
    """
    init_default_scope(cfg.get("default_scope") or "mmdet")
    try:
        model: Any = revert_sync_batchnorm(MODELS.build(copy.deepcopy(cfg.model)))  # mmdet writes into it
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError, ImportError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or ["?"])[-1]
        raise InputError(f"{described_in} describes no model that mmdet can build: {reason}") from error
    state, report = checkpoints.select(checkpoints.read_state(checkpoint), model.state_dict())
    report.require(f"{checkpoint} does not fit {described_in}", spare=lambda name: ".loss_" in name)
    if any(".loss_" not in name for name in report.unexpected):
        _log.warning("%s: %s", checkpoint, report)
    model.load_state_dict(state, strict=False)
    model.to(device or devices.choose()).eval()
    if "speed" in cfg:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = cfg.speed.tf32
        if cfg.speed.channels_last:
            model.to(memory_format=torch.channels_last)
    return model


@dataclass(frozen=True)
class Detections:
    """What a detector finds on an image, best first."""

    box_N4: np.ndarray  # corners in pixels of the image as stored: left, top, right, bottom
    score_N: np.ndarray
    label_N: np.ndarray  # 0..C-1

    def above(self, score: float) -> "Detections":
        """Those of at least this score."""
        return self.where(self.score_N >= score)

    def where(self, chosen_N: np.ndarray) -> "Detections":
        """Those that are chosen, bool [N]."""
        return Detections(self.box_N4[chosen_N], self.score_N[chosen_N], self.label_N[chosen_N])

    def coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """In COCO's result format; `category_ids` are those of the labels."""
        rows = zip(self.box_N4.tolist(), self.score_N.tolist(), self.label_N.tolist(), strict=True)
        return [
            {"image_id": image_id, "bbox": box, "score": score, "category_id": category_ids[label]}
            for (left, top, right, bottom), score, label in rows
            for box in [[left, top, right - left, bottom - top]]
        ]


def by_size(samples: Iterable[Any], most: int, divisor: int) -> Iterator[list[Any]]:
    """Put images together that are padded to the same size: each is padded as it would be alone.

    Beside a larger one it would be padded further, which takes time and changes what is found. Sizes are those of the
    images that were read, for annotations may be wrong.

    Args:
        samples: of mmdet's pipelines; what is no dict stands for an image that cannot be read, and comes alone.
        most: images of a batch.
        divisor: of the sides of a batch, `pad_size_divisor` of mmdet.

    Yields:
        Samples to collate. At most `WAITING * most` are held: images of one size should come after each other.
    """
    groups: dict[tuple[int, int], list[Any]] = {}  # the one that grew last comes last
    held = 0
    for sample in samples:
        if not isinstance(sample, dict):
            yield [sample]
            continue
        height, width = sample["inputs"].shape[-2:]
        size = -(-height // divisor), -(-width // divisor)
        groups[size] = [*groups.pop(size, []), sample]
        held += 1
        if len(groups[size]) == most or held == WAITING * most:
            batch = groups.pop(size if len(groups[size]) == most else next(iter(groups)))
            held -= len(batch)
            yield batch
    yield from groups.values()


def predict(
    model: Any, batches: Iterable[dict[str, Any]], bad_images: "BadImages | None" = None, precision: str = "fp32"
) -> Iterator[tuple[Any, Detections]]:
    """Detect on batches of images.

    Args:
        model: a detector of mmdet in evaluation mode, as `load` returns it.
        batches: mmdet's `inputs` and `data_samples`, and `unreadable`, as `ghm.collate` puts them together.
        bad_images: counts the images that cannot be read, and says when they are too many; None: leave them out.
        precision: fp32, or of a detector with one stage bf16: of the network, by autocast; boxes stay float32.

    Yields:
        For each image that can be read, in order: mmdet's data sample (`img_id`, `img_path`, `ori_shape`) and the
        detections.

    Raises:
        InputError: too many images cannot be read, or the model needs an operator that is not installed.
    """
    for batch in batches:
        unreadable = batch.pop("unreadable")
        if bad_images is not None:
            for line in bad_images.add(unreadable):
                _log.warning(line)
            bad_images.require()
        if not batch["inputs"]:
            continue
        try:
            with torch.no_grad():
                samples = model.test_step(batch) if precision == "fp32" else _test_in_bf16(model, batch)
        except NotImplementedError as error:
            raise InputError(str(error)) from error
        for sample in samples:
            instances = sample.pred_instances
            box_N4, score_N = (tensor.float().cpu().numpy() for tensor in (instances.bboxes, instances.scores))
            order_N = np.argsort(-score_N, kind="stable")
            yield sample, Detections(box_N4[order_N], score_N[order_N], instances.labels.cpu().numpy()[order_N])


def _test_in_bf16(model: Any, batch: dict[str, Any]) -> list[Any]:
    """`test_step` of mmdet's `SingleStageDetector`, of which backbone, neck and head are computed in bfloat16."""
    batch = model.data_preprocessor(batch, False)
    with torch.autocast(batch["inputs"].device.type, torch.bfloat16):
        outputs = model(**batch, mode="tensor")
    maps = [[level.float() for level in levels] for levels in outputs]
    metas = [sample.metainfo for sample in batch["data_samples"]]
    found = model.bbox_head.predict_by_feat(*maps, batch_img_metas=metas, rescale=True)
    return model.add_pred_to_datasample(batch["data_samples"], found)
