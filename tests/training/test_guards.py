"""Laws of the guard rails: no alarm for what is well; for what is not, what, where and how to mend it."""

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope

from ghm import config, data, params, presets
from ghm.errors import InputError
from ghm.registry import DATASETS, MODELS
from ghm.training import guards
from ghm.training.guards import Watch, learning_rate_warning

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
DEFAULT = params.load(ROOT / "params.yaml").train
SGD = replace(DEFAULT, optimizer="sgd", lr=0.01, batch_size=16, base_batch_size=16)


@pytest.mark.parametrize("name", NAMES)
def test_no_preset_is_warned_of(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    monkeypatch.chdir(tmp_path)
    presets.apply(name)
    assert learning_rate_warning(params.load().train) is None


def test_a_rate_for_8_gpus_used_on_one_is_warned_of():
    text = learning_rate_warning(replace(SGD, lr=0.02, batch_size=2, base_batch_size=None)) or ""
    assert "train.lr: 0.02" in text and "train.batch_size: 2" in text and "16 times too large" in text


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_warning_begins_at_the_margin_on_both_sides(optimizer: Any):
    per_image = [rate / images for rate, images in guards.TESTED[optimizer]]

    def warns(lr: float) -> bool:
        train = replace(SGD, optimizer=optimizer, lr=lr, batch_size=1, base_batch_size=None)
        return learning_rate_warning(train) is not None

    most, least = max(per_image) * guards.MARGIN, min(per_image) / guards.MARGIN
    found = [warns(lr) for lr in (most * 1.01, most * 0.99, least * 1.01, least * 0.99)]
    assert found == [True, False, False, True]


def warnings_of(losses: list[float], positives: float = 50.0) -> list[tuple[int, str]]:
    watch = Watch()
    steps = enumerate(losses, 1)
    return [(step, text) for step, loss in steps for text in watch.step(step, {"loss": loss, "positives": positives})]


def test_noise_of_small_batches_is_not_an_explosion():
    noise = random.Random(0)
    assert not warnings_of([noise.lognormvariate(0, 1) for _ in range(5000)])


def test_a_loss_that_diverges_is_warned_of_before_it_overflows():
    found = warnings_of([1.0] * 60 + [1.5**step for step in range(200)])
    assert found
    step, text = found[0]
    assert step < 75
    assert re.search(rf"the loss explodes: \S+ at step {step}, .*train\.lr", text)


def test_nothing_is_an_explosion_before_there_is_something_to_hold_it_against():
    assert not warnings_of([1.0] * (guards.WINDOW - 1) + [1e6] * guards.RUN)
    assert warnings_of([1.0] * guards.WINDOW + [1e6] * guards.RUN)


def test_too_few_positive_anchors_are_warned_of_with_the_numbers_and_once():
    [(step, text)] = warnings_of([1.0] * 1100, positives=0.25)
    assert step == 100
    assert "0.25 positive anchors per step, the mean of the last 100 steps up to 100; set model.anchors" in text
    assert not warnings_of([1.0] * 1000, positives=1.0)


class Case:
    """The detector of the tiny preset, four of its images, and one step on them."""

    def __init__(self, variant: str = "ghmc_ghmr") -> None:
        self.parameters, self.variant = params.load(), variant
        cfg = config.build(self.parameters, variant, data.read_manifest(self.parameters), None, 0)
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope("mmdet"):
            self.model: Any = MODELS.build(cfg.model)
            dataset: Any = DATASETS.build(cfg.train_dataloader.dataset)
            self.batch: dict[str, Any] = dict(pseudo_collate([dataset[index] for index in range(4)]))
        self.model.train()
        self.images = [sample.metainfo["img_path"] for sample in self.batch["data_samples"]]

    def fail(self) -> str:
        """Forward and backward, and the message."""
        losses = self.model(**self.model.data_preprocessor(dict(self.batch), True), mode="loss")
        loss, terms = self.model.parse_losses(losses)
        loss.backward()
        norms = [float(weight.grad.norm()) for weight in self.model.parameters() if weight.grad is not None]
        return self.message({**{name: float(value.detach()) for name, value in terms.items()}, "grad_norm": sum(norms)})

    def message(self, values: dict[str, float], step: int = 1, **changed: Any) -> str:
        parameters = replace(self.parameters, train=replace(self.parameters.train, **changed))
        error = guards.non_finite(
            self.model, self.batch, values, step=step, epoch=1, parameters=parameters, variant=self.variant
        )
        assert isinstance(error, InputError)
        return str(error)


@pytest.fixture
def case(workspace: Path) -> Case:
    return Case()


def test_the_message_says_what_where_and_what_to_try(case: Case):
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    text = case.message({"loss": math.nan, "loss_cls": 1.0, "grad_norm": math.inf}, step=7)
    assert text.startswith(f"loss is nan, grad_norm is inf at step 7 (epoch 1), images {', '.join(case.images)}, ")
    for words in ("a lower train.lr", "ghmc.bias_correction: true", "ghmr.bias_correction: true"):
        assert words in text
    assert "train.grad_clip" not in text and "precision" not in text and "mend" not in text
    torch.testing.assert_close(dict(case.model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changed", "words"),
    [(dict(grad_clip=None), "train.grad_clip: 35.0"), (dict(precision="fp16"), "train.precision: fp32 or bf16")],
)
def test_the_remedies_follow_the_parameters(case: Case, changed: dict[str, Any], words: str):
    assert words in case.message({"loss": math.nan}, **changed)
    assert words not in case.message({"loss": math.nan})


def test_the_start_of_the_moving_average_is_only_blamed_early_and_when_it_is_biased(case: Case):
    early = guards.EARLY / (1 - 0.75)
    assert "ghmc.bias_correction" in case.message({"loss": math.nan}, step=int(early))
    assert "ghmc.bias_correction" not in case.message({"loss": math.nan}, step=int(early) + 1)
    case.model.bbox_head.loss_cls.bias_correction = True
    text = case.message({"loss": math.nan})
    assert "ghmc.bias_correction" not in text and "ghmr.bias_correction" in text
    assert "bias_correction" not in Case("fl_sl1").message({"loss": math.nan})


def test_a_gradient_and_a_weight_that_are_nan_are_named(case: Case):
    weight = case.model.bbox_head.retina_cls.weight
    hook = weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), math.nan))
    text = case.fail()
    assert text.startswith("grad_norm is nan") and "gradients of bbox_head.retina_cls.weight. Try" in text
    hook.remove()
    with torch.no_grad():
        weight[0] = math.nan
    text = case.fail()
    assert "loss_cls is nan" in text
    assert "bbox_head.retina_cls.weight were not finite before" in text and "train.lr" not in text


def spoil_pixels(batch: dict[str, Any]) -> None:
    batch["inputs"][2] = torch.full_like(batch["inputs"][2], math.inf, dtype=torch.float32)


def spoil_boxes(batch: dict[str, Any]) -> None:
    boxes = batch["data_samples"][2].gt_instances.bboxes
    boxes.tensor[0, 2:] = boxes.tensor[0, :2]


@pytest.mark.parametrize("spoil", [spoil_pixels, spoil_boxes])
def test_a_spoilt_image_is_to_be_mended(case: Case, spoil: Callable[[dict[str, Any]], None]):
    spoil(case.batch)
    assert f"mend images {case.images[2]}, which" in case.fail()
