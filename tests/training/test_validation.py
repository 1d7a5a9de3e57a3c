"""Laws of AP so far: it is that of pycocotools on the chosen images, and measuring it leaves no trace."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ghm import config, params
from ghm.registry import MODELS
from ghm.training import randomness
from ghm.training.samples import Unreadable
from ghm.training.validation import ValidationSample


@pytest.fixture
def cfg(workspace: Path) -> Iterator[Config]:
    """The tiny training, with mmdet's names without a prefix, as the Runner has them."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield config.for_run(params.load(), "ghmc_ghmr", 0)


class Oracle:
    """Gives the true boxes of each image, moved by some pixels, with scores that are not all in order."""

    def __init__(self, cfg: Config, shift: float = 3.0) -> None:
        self.truth = quiet(COCO, cfg.validation.annotations)
        self.labels = {number: label for label, number in enumerate(self.truth.getCatIds())}
        self.shift = shift
        self.sizes: list[int] = []

    def test_step(self, batch: dict[str, Any]) -> list[Any]:
        assert not torch.is_grad_enabled()
        self.sizes.append(len(batch["inputs"]))
        assert batch.keys() == {"inputs", "data_samples"}
        for sample in batch["data_samples"]:
            generator = np.random.default_rng(sample.img_id)
            boxes = self.truth.imgToAnns[sample.img_id]
            rows = np.array([each["bbox"] for each in boxes]).reshape(-1, 4)
            rows[:, 2:] += rows[:, :2]
            instances: Any = sample.gt_instances.new()
            instances.bboxes = torch.tensor(rows + generator.normal(0, self.shift, rows.shape))
            instances.scores = torch.tensor(generator.random(len(rows)))
            instances.labels = torch.tensor([self.labels[each["category_id"]] for each in boxes], dtype=torch.long)
            sample.pred_instances = instances
        return batch["data_samples"]


def quiet(call: Any, *arguments: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return call(*arguments)


def image_ids(sample: ValidationSample) -> list[int]:
    return [sample.dataset.get_data_info(index)["img_id"] for index in sample.chosen]


def ap(cfg: Config, sample: ValidationSample, model: Any, without: int | None = None) -> float:
    """AP of pycocotools, of detections found image by image, on true boxes that are those of the chosen images alone.

    Args:
        without: an image whose detections are left out.
    """
    truth = quiet(COCO, cfg.validation.annotations)
    ids = set(image_ids(sample))
    kept = {name: [row for row in truth.dataset[name] if row.get("image_id", row["id"]) in ids]
            for name in ("images", "annotations")}  # fmt: skip
    truth.dataset = {**kept, "categories": truth.dataset["categories"]}
    quiet(truth.createIndex)
    rows = []
    for index in sample.chosen:
        with torch.no_grad():
            [found] = model.test_step(dict(pseudo_collate([sample.dataset[index]])))
        boxes = found.pred_instances
        for box, score, label in zip(boxes.bboxes.tolist(), boxes.scores.tolist(), boxes.labels.tolist(), strict=True):
            left, top, right, bottom = box
            if found.img_id != without:
                rows.append([found.img_id, left, top, right - left, bottom - top, score, truth.getCatIds()[label]])
    evaluation = COCOeval(truth, quiet(truth.loadRes, np.array(rows)), "bbox")
    for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
        quiet(step)
    return evaluation.stats[0]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_ap_is_that_of_pycocotools_on_the_chosen_images(cfg: Config, count: int):
    cfg.validation.images = count
    sample, model = ValidationSample(cfg), Oracle(cfg)
    found = sample(model)
    assert 0.05 < found < 0.95
    assert found == pytest.approx(ap(cfg, sample, model), abs=1e-12)
    assert isinstance(found, float)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 7, 8, 9, 100])
def test_the_chosen_images_are_as_many_as_asked_for_and_evenly_spaced(cfg: Config, count: int):
    cfg.validation.images = count
    sample = ValidationSample(cfg)
    assert len(sample.dataset) == 8
    assert len(sample.chosen) == len(set(sample.chosen)) == min(count, 8)
    assert all(0 <= index < 8 for index in sample.chosen)
    gaps = np.diff(sample.chosen)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
    if count > 1:
        assert (sample.chosen[0], sample.chosen[-1]) == (0, 7)


@pytest.mark.parametrize(("batch_size", "sizes"), [(3, [3, 3, 1]), (64, [4, 3])])
def test_one_process_never_has_more_than_four_images_at_once(cfg: Config, batch_size: int, sizes: list[int]):
    cfg.validation.images = 7
    cfg.train_dataloader.batch_size = batch_size
    model = Oracle(cfg)
    ValidationSample(cfg)(model)
    assert model.sizes == sizes


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_an_image_that_cannot_be_read_counts_as_one_without_detections(cfg: Config, batch_size: int):
    cfg.train_dataloader.batch_size = batch_size
    sample, model = ValidationSample(cfg), Oracle(cfg)
    lost = sample.dataset.get_data_info(2)
    expected = ap(cfg, sample, model, without=lost["img_id"])
    assert expected < sample(model)
    get_data_info = sample.dataset.dataset.get_data_info

    def elsewhere(index: int) -> dict[str, Any]:
        info = get_data_info(index)
        return {**info, "img_path": "nowhere.jpg"} if info["img_id"] == lost["img_id"] else info

    sample.dataset.dataset.get_data_info = elsewhere
    assert isinstance(sample.dataset[2], Unreadable)
    assert sample(model) == pytest.approx(expected, abs=1e-12)


def test_measuring_leaves_no_trace_in_the_detector_the_random_numbers_or_the_terminal(
    cfg: Config, capsys: pytest.CaptureFixture[str]
):
    model = MODELS.build(cfg.model).eval()
    sample = ValidationSample(cfg)
    capsys.readouterr()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = randomness.capture()
    first = sample(model)
    after = randomness.capture()
    assert torch.equal(state.pop("torch"), after.pop("torch"))
    assert state == after
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert not any(module.training for module in model.modules())
    assert sample(model) == first
    assert capsys.readouterr().out == ""


def test_where_nothing_is_found_the_ap_is_zero(cfg: Config):
    cfg.validation.dataset.dataset.data_prefix.img = "nowhere/"
    model = Oracle(cfg)
    assert ValidationSample(cfg)(model) == 0.0
    assert model.sizes == []
