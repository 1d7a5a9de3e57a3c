"""Laws of AP so far: it is that of pycocotools on the chosen images, and measuring it leaves no trace."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from ghm import config, params
from ghm.evaluation.judge import judge
from ghm.predict import predict
from ghm.registry import MODELS
from ghm.training import randomness
from ghm.training.samples import Unreadable, collate
from ghm.training.validation import ValidationSample


@pytest.fixture
def cfg(workspace: Path) -> Iterator[Config]:
    """The tiny training, with mmdet's names without a prefix, as the Runner has them."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield config.for_run(params.load(), "ghmc_ghmr", 0)


class Oracle:
    """Gives the true boxes of each image, moved by some pixels, with scores that are not all in order."""

    def __init__(self, cfg: Config) -> None:
        content = json.loads(Path(cfg.validation.annotations).read_text())
        self.boxes = content["annotations"]
        self.labels = {entry["id"]: label for label, entry in enumerate(content["categories"])}
        self.sizes: list[int] = []
        self.shapes: list[set[Any]] = []

    def test_step(self, batch: dict[str, Any]) -> list[Any]:
        assert not torch.is_grad_enabled()
        self.sizes.append(len(batch["inputs"]))
        self.shapes.append({image.shape for image in batch["inputs"]})
        assert batch.keys() == {"inputs", "data_samples"}
        for sample in batch["data_samples"]:
            generator = np.random.default_rng(sample.img_id)
            boxes = [box for box in self.boxes if box["image_id"] == sample.img_id]
            rows = np.array([box["bbox"] for box in boxes]).reshape(-1, 4)
            rows[:, 2:] += rows[:, :2]
            instances: Any = sample.gt_instances.new()
            instances.bboxes = torch.tensor(rows + generator.normal(0, 3.0, rows.shape))
            instances.scores = torch.tensor(generator.random(len(rows)))
            instances.labels = torch.tensor([self.labels[box["category_id"]] for box in boxes], dtype=torch.long)
            sample.pred_instances = instances
        return batch["data_samples"]


def ap(cfg: Config, sample: ValidationSample, folder: Path, without: int | None = None) -> float:
    """AP as the evaluation has it, of detections found image by image, on the true boxes of the chosen images alone.

    Args:
        without: an image whose detections are left out.
    """
    content = json.loads(Path(cfg.validation.annotations).read_text())
    ids = [sample.dataset.get_data_info(index)["img_id"] for index in sample.chosen]
    for name, key in (("images", "id"), ("annotations", "image_id")):
        content[name] = [row for row in content[name] if row[key] in ids]
    category_ids = [entry["id"] for entry in content["categories"]]
    batches = (collate([sample.dataset[index]]) for index in sample.chosen)
    rows = [row for one, found in predict(Oracle(cfg), batches) for row in found.coco(one.img_id, category_ids)]
    (folder / "truth.json").write_text(json.dumps(content))
    (folder / "found.json").write_text(json.dumps([row for row in rows if row["image_id"] != without]))
    return judge(folder / "truth.json", folder / "found.json").metrics["AP"]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_ap_is_that_of_the_evaluation_on_the_chosen_images(cfg: Config, tmp_path: Path, count: int):
    cfg.validation.images = count
    sample = ValidationSample(cfg)
    found = sample(Oracle(cfg))
    assert 0.05 < found < 0.95
    assert found == pytest.approx(ap(cfg, sample, tmp_path), abs=1e-12)


@pytest.mark.parametrize(
    ("count", "chosen"), [(0, []), (1, [0]), (2, [0, 7]), (5, [0, 1, 3, 5, 7]), (8, range(8)), (100, range(8))]
)
def test_the_chosen_images_are_as_many_as_asked_for_and_evenly_spaced(cfg: Config, count: int, chosen: Sequence[int]):
    cfg.validation.images = count
    assert ValidationSample(cfg).chosen == list(chosen)


@pytest.mark.parametrize(("batch_size", "sizes"), [(3, [3, 3, 1]), (64, [4, 3])])
def test_one_process_never_has_more_than_four_images_at_once(cfg: Config, batch_size: int, sizes: list[int]):
    cfg.validation.images = 7
    cfg.train_dataloader.batch_size = batch_size
    model = Oracle(cfg)
    ValidationSample(cfg)(model)
    assert model.sizes == sizes


def test_no_image_is_measured_beside_one_of_another_padded_size(cfg: Config, tmp_path: Path):
    cfg.train_dataloader.batch_size = 4
    sample, model = ValidationSample(cfg), Oracle(cfg)
    expected = ap(cfg, sample, tmp_path)
    whole, numbers = sample.dataset.dataset.pipeline, itertools.count()

    def narrowed(info: dict[str, Any]) -> dict[str, Any]:
        read = whole(info)
        return {**read, "inputs": read["inputs"][..., : 33 if next(numbers) % 2 else 32]}

    sample.dataset.dataset.pipeline = narrowed
    assert sample(model) == pytest.approx(expected, abs=1e-12)
    assert model.sizes == [4, 4] and [len(shapes) for shapes in model.shapes] == [1, 1]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_image_that_cannot_be_read_counts_as_one_without_detections(cfg: Config, tmp_path: Path, batch_size: int):
    cfg.train_dataloader.batch_size = batch_size
    sample, model = ValidationSample(cfg), Oracle(cfg)
    lost = sample.dataset.get_data_info(2)
    expected = ap(cfg, sample, tmp_path, without=lost["img_id"])
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
