"""A trained detector, and what is known of it: a run of this pipeline, or any config and checkpoint of mmdet."""

import copy
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import Compose

from ghm import checkpoints, params, predict, runs
from ghm.data.images import UnreadableError
from ghm.detect import inputs
from ghm.errors import InputError
from ghm.training.samples import Unreadable, collate

SCORE = 0.3  # from which on boxes are shown where it is not known from which on F1 is best


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


def operating_point(variant: str, seed: int) -> dict[str, Any] | None:
    """The `score` of the best F1 of a finished run and the split it was `chosen_on`; None: it is not evaluated."""
    try:
        content = json.loads((runs.detections_folder(variant, seed) / runs.OUTCOME).read_text(encoding="utf-8"))
        trained = runs.Record.read(runs.run_folder(variant, seed)).fingerprint
    except OSError:
        return None
    return {name: content[name] for name in ("score", "chosen_on")} if content["fingerprint"] == trained else None


@dataclass(frozen=True)
class Detector:
    """A detector in evaluation mode."""

    cfg: Config
    model: Any
    classes: list[str]
    category_ids: list[int]  # of the classes, in the data set that it was trained on
    score: float  # from which on detections are of interest
    score_is: str  # words on why this one, in brackets

    @classmethod
    def open(
        cls, config: Path, checkpoint: Path, score: float | None = None, point: dict[str, Any] | None = None,
        device: str | None = None,
    ) -> "Detector":  # fmt: skip
        """Load a detector.

        Args:
            config: a program of mmengine's.
            checkpoint: only tensors are read.
            score: the lowest that is of interest, None: that of `point`; a detector that would drop such detections is
                told not to.
            point: of `operating_point`; None: what the config has as `operating_point`, if anything, or else SCORE.
            device: CUDA where there is one, or else the CPU.

        Raises:
            InputError: a file is missing or of another kind, or the checkpoint does not fit the config.
        """
        try:
            cfg = Config.fromfile(config)
        except Exception as error:  # a config is a program, and may fail in any way
            raise InputError(
                f"{config} is no config that mmengine can read: {type(error).__name__}: {error}"
            ) from error
        for key in ("model", "test_dataloader"):
            if key not in cfg:
                raise InputError(f"{config} has no `{key}`: name the config of a detector of mmdet 3")
        point = point or cfg.get("operating_point")
        chosen, why = score, ""
        if chosen is None:
            chosen, why = SCORE, " (the score of the best F1 is not known)"
            if point:
                chosen, why = float(point["score"]), f" (the score of the best F1 on {point['chosen_on']})"
        test_cfg = cfg.model.get("test_cfg") or {}
        for part in (test_cfg, test_cfg.get("rcnn") or {}):
            if "score_thr" in part:
                part["score_thr"] = min(part["score_thr"], chosen)
        model = predict.load(cfg, checkpoint, str(config), device)
        return cls(cfg, model, *_classes(checkpoint, cfg, model), chosen, why)

    def batches(self, paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
        """Read images, numbered from 1, for `ghm.predict.predict`, as the evaluation and the config's pipeline do.

        One at a time: beside a larger image it would be padded, and what is found on it would depend on that.
        """
        pipeline: Any = copy.deepcopy(get_test_pipeline_cfg(self.cfg))  # type: ignore[arg-type]
        steps = []
        for step in pipeline:
            kind = getattr(step["type"], "__name__", step["type"]).rpartition(".")[-1]  # a class or its name
            if not kind.startswith("Load"):  # ours takes images of any shape
                steps.append({**step, "type": "ghm.Resize"} if kind == "Resize" else step)
        prepare = Compose(steps)
        for number, path in enumerate(paths, start=1):
            try:
                image = inputs.read(path)
            except UnreadableError as error:
                yield collate([Unreadable(number, str(path), str(error))])
                continue
            meta = {"img_path": str(path), "img_id": number, "ori_shape": image.shape[:2]}
            sample: Any = prepare({**meta, "img": image, "img_shape": image.shape[:2]})
            sample["data_samples"].set_metainfo(meta)
            yield collate([sample])


def _classes(checkpoint: Path, cfg: Config, model: Any) -> tuple[list[str], list[int]]:
    """Names and ids of the classes: those of the checkpoint, or names of the config; else numbers."""

    def part(content: Any, key: str) -> dict[str, Any]:
        return content[key] if isinstance(content.get(key), dict) else {}

    meta = part(checkpoints.load(checkpoint), "meta")
    described = part(meta, "dataset_meta")
    dataset: Any = cfg.test_dataloader.dataset
    heads = [part for name, part in model.named_modules() if "bbox_head" in name and hasattr(part, "num_classes")]
    number = heads[0].num_classes if heads else 0
    usual = part(dataset.get("dataset", dataset), "metainfo")
    known = (described.get("classes"), meta.get("CLASSES"), usual.get("classes"))  # the second is of mmdet 2
    named = [names for names in known if isinstance(names, list | tuple) and len(names) == (number or len(names))]
    classes = [str(name) for name in (named[0] if named else range(number))]
    ids = described.get("category_ids")
    if isinstance(ids, list | tuple) and all(isinstance(id_, int) for id_ in ids) and len(set(ids)) == len(classes):
        return classes, list(ids)
    return classes, list(range(1, len(classes) + 1))
