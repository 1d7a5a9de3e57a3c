"""Laws of the glance at a training: its AP is that of pycocotools on the chosen images, and it leaves no trace."""

import contextlib
import io
import json
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

from ghm import params, training
from ghm.registry import MODELS
from ghm.training import gradient_norms, randomness
from ghm.training.samples import Unreadable
from ghm.training.validation import ValidationSample


@pytest.fixture
def cfg(workspace: Path) -> Iterator[Config]:
    """The tiny training, with mmdet's names without a prefix, as the Runner has them."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield training.build_config(params.load(), "ghmc_ghmr", 0)


SEED = 1  # of random weights that find a few boxes by chance


def detector(cfg: Config, spread: float = 1.0) -> Any:
    """A detector with random weights, whose scores differ between anchors."""
    with randomness.undisturbed():
        randomness.seed(SEED)
        model = MODELS.build(cfg.model)
        torch.nn.init.normal_(model.bbox_head.retina_cls.weight, std=spread)
        torch.nn.init.zeros_(model.bbox_head.retina_cls.bias)
    return model.eval()


class Oracle:
    """Gives the true boxes of each image, moved by some pixels, with scores that are not all in order."""

    def __init__(self, cfg: Config, shift: float = 3.0) -> None:
        self.truth = quiet(COCO, cfg.validation.annotations)
        self.labels = {number: label for label, number in enumerate(self.truth.getCatIds())}
        self.shift = shift
        self.sizes: list[int] = []

    def val_step(self, batch: dict[str, Any]) -> list[Any]:
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
    kept = {
        "images": [each for each in truth.dataset["images"] if each["id"] in ids],
        "annotations": [each for each in truth.dataset["annotations"] if each["image_id"] in ids],
        "categories": truth.dataset["categories"],
    }
    truth.dataset = kept
    quiet(truth.createIndex)
    numbers = {each["name"]: each["id"] for each in kept["categories"]}
    classes = sample.dataset.metainfo["classes"]
    rows = []
    for index in sample.chosen:
        with torch.no_grad():
            [found] = model.val_step(dict(pseudo_collate([sample.dataset[index]])))
        given = found.pred_instances
        for box, score, label in zip(given.bboxes.tolist(), given.scores.tolist(), given.labels.tolist(), strict=True):
            left, top, right, bottom = box
            if found.img_id != without:
                size = right - left, bottom - top
                rows.append([found.img_id, left, top, *size, score, numbers[classes[label]]])
    evaluation = COCOeval(truth, quiet(truth.loadRes, np.array(rows)), "bbox")
    for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
        quiet(step)
    return evaluation.stats[0]


def detections(cfg: Config, model: Any) -> int:
    sample = ValidationSample(cfg)
    return sum(
        len(model.val_step(dict(pseudo_collate([sample.dataset[index]])))[0].pred_instances) for index in sample.chosen
    )


@pytest.mark.parametrize("count", [1, 3, 8])
def test_ap_is_that_of_pycocotools_on_the_chosen_images(cfg: Config, count: int):
    cfg.validation.images = count
    sample, model = ValidationSample(cfg), Oracle(cfg)
    found = sample(model)
    assert 0.05 < found < 0.95
    assert found == pytest.approx(ap(cfg, sample, model), abs=1e-12)
    assert isinstance(found, float)


def test_ap_of_a_detector_is_that_of_pycocotools(cfg: Config):
    cfg.train_dataloader.batch_size = 1
    sample, model = ValidationSample(cfg), detector(cfg)
    assert detections(cfg, model) > 100
    found = sample(model)
    assert found > 0
    assert found == pytest.approx(ap(cfg, sample, model), abs=1e-12)


def test_boxes_need_not_say_that_they_are_no_crowd(cfg: Config, tmp_path: Path):
    said = ValidationSample(cfg)(Oracle(cfg))
    content = json.loads(Path(cfg.validation.annotations).read_text())
    for box in content["annotations"]:
        assert box.pop("iscrowd") == 0
    cfg.validation.annotations = str(tmp_path / "unsaid.json")
    Path(cfg.validation.annotations).write_text(json.dumps(content))
    assert ValidationSample(cfg)(Oracle(cfg)) == said


def test_perfect_detections_have_an_ap_of_one(cfg: Config):
    assert ValidationSample(cfg)(Oracle(cfg, shift=0.0)) == pytest.approx(1.0)


def test_a_detector_that_finds_nothing_has_an_ap_of_zero(cfg: Config):
    cfg.model.test_cfg.score_thr = 0.999
    model = detector(cfg, spread=0.0)
    assert detections(cfg, model) == 0
    found = ValidationSample(cfg)(model)
    assert found == 0.0 and isinstance(found, float)


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
def test_one_process_never_has_more_than_four_images_at_once(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, batch_size: int, sizes: list[int]
):
    cfg.validation.images = 7
    cfg.train_dataloader.batch_size = batch_size
    model = Oracle(cfg)
    ValidationSample(cfg)(model)
    assert model.sizes == sizes
    norms: list[int] = []

    def histograms(_model: Any, batch: Any) -> dict[str, torch.Tensor]:
        norms.append(len(batch["inputs"]))
        return {}

    monkeypatch.setattr(gradient_norms, "histograms", histograms)
    gradient_norms.measure(torch.nn.Identity(), [{"inputs": 0}] * 7, batch_size, epoch=0)
    assert norms == sizes


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


def test_where_no_image_can_be_read_the_ap_is_zero(cfg: Config):
    cfg.validation.dataset.dataset.data_prefix.img = "nowhere/"
    model = Oracle(cfg)
    assert ValidationSample(cfg)(model) == 0.0
    assert model.sizes == []


def test_a_glance_leaves_no_trace_in_the_detector_or_the_random_numbers(cfg: Config):
    model = detector(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    randomness.seed(1)
    state = randomness.capture()
    sample = ValidationSample(cfg)
    first = sample(model)
    after = randomness.capture()
    assert torch.equal(state.pop("torch"), after.pop("torch"))
    assert state == after
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert not any(module.training for module in model.modules())
    assert sample(model) == first


def test_nothing_is_printed(cfg: Config, capsys: pytest.CaptureFixture[str]):
    model = Oracle(cfg)
    capsys.readouterr()
    ValidationSample(cfg)(model)
    assert "Average Precision" not in capsys.readouterr().out
