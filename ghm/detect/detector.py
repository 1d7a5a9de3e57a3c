"""A trained detector on images: one of this pipeline's runs, or any config and checkpoint of mmdet.

Shapes: N detections of an image.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

from ghm import checkpoints, devices, params
from ghm.errors import InputError
from ghm.registry import DATASETS
from ghm.training.optimizer import set_precision
from ghm.training.samples import LoadImage

RUNS = Path("runs")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a detector lies."""

    config: Path
    checkpoint: Path


@dataclass(frozen=True)
class Detections:
    """What was found on an image, best first."""

    box_N4: np.ndarray  # corners in pixels of the image as stored
    score_N: np.ndarray
    label_N: np.ndarray  # 0..C-1

    def above(self, score: float) -> "Detections":
        """Those of at least this score."""
        return self.only(self.score_N >= score)

    def only(self, chosen_N: Any) -> "Detections":
        """Those that a mask or a list of numbers chooses."""
        return Detections(self.box_N4[chosen_N], self.score_N[chosen_N], self.label_N[chosen_N])


@dataclass(frozen=True)
class Sample:
    """An image, read and made ready for the network."""

    path: Path
    image: np.ndarray  # as stored, upright: uint8 [height, width, 3] in B, G, R
    packed: dict[str, Any]  # mmdet's `inputs` and `data_samples`


def find_run(variant: str, seed: int) -> Source:
    """The config and the model of a finished run. The present parameters need not know the variant.

    Raises:
        InputError: there is no such run.
    """
    folder = RUNS / variant / f"seed_{seed}"
    found = Source(folder / "config.py", folder / "model.pth")
    if found.config.is_file() and found.checkpoint.is_file():
        return found
    if seeds := sorted(path.name for path in (RUNS / variant).glob("seed_*")):
        raise InputError(f"{folder} holds no finished run, there is {', '.join(seeds)}: name one of these with --seed")
    params.load().variant(variant)
    raise InputError(f"{found.checkpoint} is missing: run `dvc repro train@{variant}`")


class Detector:
    """A detector in evaluation mode.

    Args:
        source: config and checkpoint. The config is a program of mmengine's, the checkpoint is read as tensors only.
        score: the lowest score that is of interest; a detector that would drop such detections is told not to.
        device: CUDA where there is one, or else the CPU.

    Raises:
        InputError: a file is missing or of another kind, or the checkpoint does not fit the config.
    """

    def __init__(self, source: Source, score: float = 1.0, device: str | None = None) -> None:
        self.cfg = _read_config(source.config)
        init_default_scope(self.cfg.get("default_scope") or "mmdet")
        _lower_threshold(self.cfg, score)
        self.model: Any = _build(self.cfg, source)
        meta = _load_weights(self.model, source)
        self.classes = _classes(meta, self.cfg, self.model)
        self.category_ids = _category_ids(meta, len(self.classes))
        self.model.to(device or devices.choose()).eval()
        set_precision(self.cfg)
        if self.cfg.get("speed", {}).get("channels_last"):  # as the run was trained and evaluated
            self.model.to(memory_format=torch.channels_last)
        self._load = LoadImage()
        pipeline: Any = get_test_pipeline_cfg(self.cfg)  # type: ignore[arg-type]
        self._prepare = Compose(_after_loading(pipeline))

    def read(self, path: Path) -> Sample:
        """Read an image as the evaluation does, and change it as the config's test pipeline says.

        Raises:
            UnreadableError: the file is missing, no image or not whole.
        """
        loaded = self._load.transform({"img_path": str(path), "img_id": 0})
        image, packed = loaded["img"], self._prepare(loaded)
        assert packed is not None  # a test pipeline gives up no image
        return Sample(path, image, packed)

    def batches(self, samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
        """Put neighbours together, `size` at most, that the network sees at the same size.

        An image that shared a batch with a larger one would be padded, and what is found on it would depend on that.
        """
        batch: list[Sample] = []
        for sample in samples:
            if batch and (len(batch) == size or self._padded(sample) != self._padded(batch[0])):
                yield batch
                batch = []
            batch.append(sample)
        if batch:
            yield batch

    def __call__(self, batch: Sequence[Sample]) -> list[Detections]:
        """Detect on images of one size.

        Raises:
            InputError: the model needs an operator that is not there.
        """
        try:
            with torch.no_grad():
                found = self.model.test_step(pseudo_collate([sample.packed for sample in batch]))
        except NotImplementedError as error:
            raise InputError(str(error)) from error
        return [_detections(each.pred_instances.cpu().numpy()) for each in found]

    def name(self, label: int) -> str:
        """The class of a label, its number where the detector does not know more."""
        return self.classes[label] if label < len(self.classes) else str(label)

    def category(self, label: int) -> int:
        """The id of a label's class in the data set that the detector was trained on; else counted from 1."""
        return self.category_ids[label] if label < len(self.category_ids) else label + 1

    def _padded(self, sample: Sample) -> tuple[int, int]:
        divisor = getattr(self.model.data_preprocessor, "pad_size_divisor", 1)
        height, width = sample.packed["inputs"].shape[-2:]
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def _detections(instances: Any) -> Detections:
    order_N = np.argsort(-instances.scores, kind="stable")
    return Detections(instances.bboxes[order_N], instances.scores[order_N], instances.labels[order_N])


def _read_config(path: Path) -> Config:
    if not path.is_file():
        raise InputError(f"{path} is missing: name the config of a detector")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program, and may fail in any way
        raise InputError(f"{path} is no config that mmengine can read: {type(error).__name__}: {error}") from error
    for key in ("model", "test_dataloader"):
        if key not in cfg:
            raise InputError(f"{path} has no `{key}`: name the config of a detector of mmdet 3")
    return cfg


def _lower_threshold(cfg: Config, score: float) -> None:
    test_cfg = cfg.model.get("test_cfg") or {}
    for part in (test_cfg, test_cfg.get("rcnn") or {}):
        if "score_thr" in part:
            part["score_thr"] = min(part["score_thr"], score)


def _build(cfg: Config, source: Source) -> torch.nn.Module:
    try:
        return revert_sync_batchnorm(MODELS.build(copy.deepcopy(cfg.model)))  # mmdet writes into it
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError, ImportError, NotImplementedError) as error:
        said = str(error).strip().splitlines()
        raise InputError(f"{source.config} describes no model that mmdet can build: {(said or ['?'])[-1]}") from error


def _load_weights(model: torch.nn.Module, source: Source) -> dict[str, Any]:
    """Load the checkpoint into the model and return what it says of itself.

    A detector needs no state of its losses.
    """
    if not source.checkpoint.is_file():
        raise InputError(f"{source.checkpoint} is missing: name the checkpoint of a detector")
    found, report = checkpoints.select(checkpoints.read_state(source.checkpoint), model.state_dict())
    report.require(f"{source.checkpoint} does not fit {source.config}", spare=lambda name: ".loss_" in name)
    if any(".loss_" not in name for name in report.unexpected):
        _log.warning("%s: %s", source.checkpoint, report)
    model.load_state_dict(found, strict=False)
    content: Any = checkpoints.load(source.checkpoint)  # read before, so this is a checkpoint
    meta = content.get("meta")
    return meta if isinstance(meta, dict) else {}


def _classes(meta: dict[str, Any], cfg: Config, model: torch.nn.Module) -> list[str]:
    """Names of the classes: from the checkpoint, the config, or mmdet's data set of the config; else numbers."""
    dataset: Any = cfg.test_dataloader.dataset
    while "metainfo" not in dataset and ("dataset" in dataset or "datasets" in dataset):
        dataset = dataset["dataset"] if "dataset" in dataset else dataset["datasets"][0]
    registered = DATASETS.get(dataset["type"]) if isinstance(dataset.get("type"), str) else dataset.get("type")
    places = (meta.get("dataset_meta"), meta, dataset.get("metainfo"), getattr(registered, "METAINFO", None))
    number: Any = next(
        (
            each.num_classes
            for name, each in model.named_modules()
            if "bbox_head" in name and hasattr(each, "num_classes")
        ),
        None,
    )
    for place in places:
        for key in ("classes", "CLASSES"):
            names = place.get(key) if isinstance(place, dict) else None
            names = [names] if isinstance(names, str) else names
            if isinstance(names, (list, tuple)) and len(names) == (number or len(names)):
                return [str(name) for name in names]
    return [str(label) for label in range(number or 0)]


def _category_ids(meta: dict[str, Any], classes: int) -> list[int]:
    """The ids that the checkpoint names, where there is one for each class; else 1, 2, ..."""
    dataset = meta.get("dataset_meta")
    ids = dataset.get("category_ids") if isinstance(dataset, dict) else None
    if isinstance(ids, (list, tuple)) and len(set(ids)) == classes and all(isinstance(number, int) for number in ids):
        return list(ids)
    return list(range(1, classes + 1))


def _after_loading(pipeline: Sequence[Any]) -> list[Any]:
    """The steps after the image is read: they need neither the file nor annotations. Our `Resize` takes every image."""
    steps = [copy.deepcopy(step) for step in pipeline if not _kind(step).startswith("Load")]
    for step in steps:
        if _kind(step) == "Resize":
            step["type"] = "ghm.Resize"
    return steps


def _kind(step: Any) -> str:
    """The name of a step's class, which a config gives as a text or as the class."""
    kind = step["type"]
    return kind.rpartition(".")[-1] if isinstance(kind, str) else kind.__name__
