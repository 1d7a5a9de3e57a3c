"""A trained detector, and what is known of it: a run of this pipeline, or any config and checkpoint of mmdet."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import Compose

from ghm import checkpoints, detector, params, runs
from ghm.data.images import UnreadableError
from ghm.errors import InputError
from ghm.registry import DATASETS
from ghm.training.samples import LoadImage, Unreadable, collate


def find_run(variant: str, seed: int) -> tuple[Path, Path]:
    """The config and the checkpoint of a finished run. The present parameters need not know the variant.

    Raises:
        InputError: there is no such run.
    """
    folder = runs.run_folder(variant, seed)
    config, checkpoint = folder / runs.CONFIG, folder / runs.MODEL
    if config.is_file() and checkpoint.is_file():
        return config, checkpoint
    if seeds := sorted(path.name for path in folder.parent.glob("seed_*")):
        raise InputError(f"{folder} holds no finished run, there is {', '.join(seeds)}: name one of these with --seed")
    params.load().variant(variant)
    raise InputError(f"{checkpoint} is missing: run `dvc repro train@{variant}`")


@dataclass(frozen=True)
class Detector:
    """A detector in evaluation mode."""

    cfg: Config
    model: Any
    classes: list[str]
    category_ids: list[int]  # of the classes, in the data set that it was trained on

    @classmethod
    def open(cls, config: Path, checkpoint: Path, score: float = 1.0, device: str | None = None) -> "Detector":
        """Load a detector.

        Args:
            config: a program of mmengine's.
            checkpoint: only tensors are read.
            score: the lowest score that is of interest; a detector that would drop such detections is told not to.
            device: CUDA where there is one, or else the CPU.

        Raises:
            InputError: a file is missing or of another kind, or the checkpoint does not fit the config.
        """
        for path, kind in ((config, "config"), (checkpoint, "checkpoint")):
            if not path.is_file():
                raise InputError(f"{path} is missing: name the {kind} of a detector")
        try:
            cfg = Config.fromfile(config)
        except Exception as error:  # a config is a program, and may fail in any way
            raise InputError(
                f"{config} is no config that mmengine can read: {type(error).__name__}: {error}"
            ) from error
        for key in ("model", "test_dataloader"):
            if key not in cfg:
                raise InputError(f"{config} has no `{key}`: name the config of a detector of mmdet 3")
        test_cfg = cfg.model.get("test_cfg") or {}
        for part in (test_cfg, test_cfg.get("rcnn") or {}):
            if "score_thr" in part:
                part["score_thr"] = min(part["score_thr"], score)
        model = detector.load(cfg, checkpoint, str(config), device)
        content: Any = checkpoints.load(checkpoint)
        meta = content.get("meta")
        classes = _classes(meta, cfg, model)
        return cls(cfg, model, classes, _category_ids(meta, len(classes)))

    def batches(self, paths: Iterable[Path], size: int) -> Iterator[dict[str, Any]]:
        """Read images, numbered from 1, for `ghm.predict.predict`: neighbours that the network sees at the same size.

        An image that shared a batch with a larger one would be padded, and what is found on it would depend on that.
        """
        divisor = getattr(self.model.data_preprocessor, "pad_size_divisor", 1)

        def padded(sample: Any) -> list[int] | None:
            if isinstance(sample, Unreadable):
                return None
            return [-(-side // divisor) for side in sample["inputs"].shape[-2:]]

        for _, neighbours in groupby(self._samples(paths), padded):
            while batch := list(islice(neighbours, size)):
                yield collate(batch)

    def _samples(self, paths: Iterable[Path]) -> Iterator[Any]:
        """Read images as the evaluation does, and change them as the config's test pipeline says after reading."""
        pipeline: Any = copy.deepcopy(get_test_pipeline_cfg(self.cfg))  # type: ignore[arg-type]
        steps = [step for step in pipeline if not _type(step).startswith("Load")]
        for step in steps:
            if _type(step) == "Resize":
                step["type"] = "ghm.Resize"  # takes images of any shape
        load, prepare = LoadImage(), Compose(steps)
        for number, path in enumerate(paths, start=1):
            try:
                image = load.transform({"img_path": str(path), "img_id": number})
            except UnreadableError as error:
                yield Unreadable(number, str(path), str(error))
                continue
            meta = {name: image[name] for name in ("img_path", "img_id", "ori_shape")}
            sample: Any = prepare(image)
            sample["data_samples"].set_metainfo(meta)
            yield sample


def _type(step: Any) -> str:
    """The name of a step's class, which a config gives as a text or as the class."""
    kind = step["type"]
    return kind.rpartition(".")[-1] if isinstance(kind, str) else kind.__name__


def _classes(meta: Any, cfg: Config, model: Any) -> list[str]:
    """Names of the classes: from the checkpoint, the config, or mmdet's data set of the config; else numbers."""
    dataset: Any = cfg.test_dataloader.dataset
    while "dataset" in dataset and "metainfo" not in dataset:
        dataset = dataset["dataset"]
    registered = DATASETS.get(dataset["type"]) if isinstance(dataset["type"], str) else dataset["type"]
    heads = [part for name, part in model.named_modules() if "bbox_head" in name and hasattr(part, "num_classes")]
    number = heads[0].num_classes if heads else 0
    for described in (_dataset_meta(meta), meta, dataset.get("metainfo"), getattr(registered, "METAINFO", None)):
        for key in ("classes", "CLASSES"):
            names = described.get(key) if isinstance(described, dict) else None
            names = [names] if isinstance(names, str) else names
            if isinstance(names, list | tuple) and len(names) == (number or len(names)):
                return [str(name) for name in names]
    return [str(label) for label in range(number)]


def _category_ids(meta: Any, classes: int) -> list[int]:
    """The ids that the checkpoint names, where there is one for each class; else 1, 2, ..."""
    ids = _dataset_meta(meta).get("category_ids")
    if isinstance(ids, list | tuple) and len(set(ids)) == classes and all(isinstance(number, int) for number in ids):
        return list(ids)
    return list(range(1, classes + 1))


def _dataset_meta(meta: Any) -> dict[str, Any]:
    described = meta.get("dataset_meta") if isinstance(meta, dict) else None
    return described if isinstance(described, dict) else {}
