"""Laws of the guard rails: no alarm for what is well; for what is not, what, where and how to mend it."""

import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope

from ghm import config, data, gradient_norms, params, presets
from ghm.errors import InputError
from ghm.params import Train
from ghm.registry import DATASETS, MODELS
from ghm.training import guards
from ghm.training.guards import Watch, learning_rate_warning

HEAD = ("cls_convs", "reg_convs", "retina_cls", "retina_reg")
ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
DEFAULT = params.load(ROOT / "params.yaml").train
SGD = replace(DEFAULT, optimizer="sgd", lr=0.01, batch_size=16, base_batch_size=16)


# ---- learning rate ---------------------------------------------------------------------------------------------------


def test_the_default_learning_rate_is_not_warned_of():
    assert learning_rate_warning(DEFAULT) is None


@pytest.mark.parametrize("name", NAMES)
def test_no_preset_is_warned_of(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    monkeypatch.chdir(tmp_path)
    presets.apply(name)
    assert learning_rate_warning(params.load().train) is None


def test_a_rate_for_8_gpus_used_on_one_is_warned_of_with_all_numbers():
    text = learning_rate_warning(replace(SGD, lr=0.02, batch_size=2, base_batch_size=None)) or ""
    assert "train.lr: 0.02" in text
    assert "train.batch_size: 2" in text
    assert "train.base_batch_size: null" in text
    assert "0.01 for 16" in text
    assert "16 times too large" in text


@given(images=st.integers(1, 4096), optimizer=st.sampled_from(["sgd", "adamw"]))
def test_a_tested_rate_that_follows_the_images_is_never_warned_of(images: int, optimizer: Any):
    for rate, tested in guards.TESTED[optimizer]:
        train = replace(SGD, optimizer=optimizer, lr=rate, base_batch_size=tested, batch_size=images)
        assert learning_rate_warning(train) is None


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_warning_begins_at_the_margin_on_both_sides(optimizer: Any):
    per_image = [rate / images for rate, images in guards.TESTED[optimizer]]

    def warns(lr: float) -> bool:
        train = replace(SGD, optimizer=optimizer, lr=lr, batch_size=1, base_batch_size=None)
        return learning_rate_warning(train) is not None

    most, least = max(per_image) * guards.MARGIN, min(per_image) / guards.MARGIN
    found = [warns(lr) for lr in (most * 1.01, most * 0.99, least * 1.01, least * 0.99)]
    assert found == [True, False, False, True]


def test_nothing_is_said_of_the_rate_when_nothing_is_trained():
    assert learning_rate_warning(replace(SGD, lr=100.0, epochs=0)) is None


# ---- watch -----------------------------------------------------------------------------------------------------------


def warnings_of(losses: list[float], positives: float = 50.0, watch: Watch | None = None) -> list[tuple[int, str]]:
    watch = watch or Watch(4)
    steps = enumerate(losses, 1)
    return [(step, text) for step, loss in steps for text in watch.step(step, {"loss": loss, "positives": positives})]


@pytest.mark.parametrize("seed", range(3))
def test_noise_of_small_batches_is_not_an_explosion(seed: int):
    noise = random.Random(seed)
    assert not warnings_of([noise.lognormvariate(0, 1) for _ in range(5000)])


def test_single_batches_far_above_the_others_are_not_an_explosion():
    assert not warnings_of([100.0 if step % 10 in (0, 1) else 0.5 for step in range(100)] + [0.5] * 60 + [1e4, 1e4])


def test_the_large_first_losses_of_ghm_are_not_an_explosion():
    for momentum in (0.7, 0.75, 0.99):
        assert not warnings_of([1 / (1 - momentum ** (step + 1)) for step in range(1000)])


def test_a_loss_that_diverges_is_warned_of_before_it_overflows():
    found = warnings_of([1.0] * 60 + [1.5**step for step in range(200)])
    assert found
    step, text = found[0]
    assert step < 75
    assert re.search(rf"the loss explodes: \S+ at step {step}, .*train\.lr", text)


def test_a_loss_that_stays_high_is_warned_of_once_in_200_steps():
    losses = [1.0] * 100
    for step in range(1000):
        losses.append(1.1 ** min(step, 400) + 20.0 ** (1 + step // 10))
    found = [step for step, _ in warnings_of(losses)]
    assert len(found) > 2
    assert all(later - earlier >= guards.LOSS_QUIET for earlier, later in pairwise(found))


def test_nothing_is_an_explosion_before_there_is_something_to_hold_it_against():
    assert not warnings_of([1.0] * (guards.WINDOW - 1) + [1e6] * guards.RUN)
    assert warnings_of([1.0] * guards.WINDOW + [1e6] * guards.RUN)


def test_too_few_positive_anchors_are_warned_of_with_the_numbers_and_once_in_500_steps():
    found = warnings_of([1.0] * 1100, positives=0.25)
    assert [step for step, _ in found] == [100, 600, 1100]
    for words in ("0.25 positive anchors", "4 images", "100 steps", "base_scale", "scales_per_octave", "ratios"):
        assert words in found[0][1]
    assert "train.image_scale" in found[0][1]


def test_one_positive_anchor_a_step_is_enough():
    assert not warnings_of([1.0] * 1000, positives=1.0)


def test_a_watch_that_does_not_know_the_batch_size_says_nothing_of_it():
    (_, text), *_ = warnings_of([1.0] * 100, positives=0.0, watch=Watch())
    assert "images:" not in text and "None" not in text


def mostly(usual: float, rare: float) -> st.SearchStrategy[list[float]]:
    """Runs of two values, so that warnings do come."""
    runs = st.tuples(st.sampled_from([usual, rare]), st.integers(1, 150))
    return st.lists(runs, min_size=3, max_size=8).map(lambda found: [value for value, n in found for _ in range(n)])


@given(losses=mostly(1.0, 100.0), positives=mostly(0.0, 9.0), cut=st.integers(0, 1200))
def test_a_restored_watch_warns_as_one_that_never_stopped(losses: list[float], positives: list[float], cut: int):
    values = [{"loss": loss, "positives": some} for loss, some in zip(losses, positives, strict=False)]
    whole, first, second = Watch(4), Watch(4), Watch(4)
    expected = [whole.step(step, each) for step, each in enumerate(values, 1)]
    cut = min(cut, len(values))
    found = [first.step(step, each) for step, each in enumerate(values[:cut], 1)]
    second.restore(json.loads(json.dumps(first.state())))
    found += [second.step(step, each) for step, each in enumerate(values[cut:], cut + 1)]
    assert found == expected
    assert second.state() == whole.state()


def test_a_state_does_not_change_with_the_watch_it_was_taken_from():
    watch = Watch(4)
    warnings_of([1.0] * 10, watch=watch)
    state = watch.state()
    warnings_of([2.0] * 10, watch=watch)
    assert len(state["losses"]) == len(state["positives"]) == 10


# ---- numbers that are not finite -------------------------------------------------------------------------------------


SECTIONS = {"loss_cls": "ghmc_smooth", "loss_bbox": "ghmr"}


class Case:
    """The detector of the tiny preset, four of its images, and one step on them."""

    def __init__(self, variant: str = "ghmc_ghmr") -> None:
        given = params.load()
        self.train = given.train
        cfg = config.build(given, variant, data.read_manifest(given), None, 0)
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope("mmdet"):
            self.model: Any = MODELS.build(cfg.model)
            dataset: Any = DATASETS.build(cfg.train_dataloader.dataset)
            self.batch: dict[str, Any] = dict(pseudo_collate([dataset[index] for index in range(4)]))
        self.model.train()
        self.ids = [sample.metainfo["img_id"] for sample in self.batch["data_samples"]]

    def fail(self, step: int = 1, **changed: Any) -> tuple[str, dict[str, Any]]:
        """Forward and backward; the message and the content of the file."""
        losses = self.model(**self.model.data_preprocessor(dict(self.batch), True), mode="loss")
        loss, terms = self.model.parse_losses(losses)
        loss.backward()
        found = [weight.grad.norm() for weight in self.model.parameters() if weight.grad is not None]
        values = {**{name: float(value.detach()) for name, value in terms.items()}, "grad_norm": float(sum(found))}
        return self.describe(values, step, **changed)

    def describe(self, values: dict[str, float], step: int = 1, **changed: Any) -> tuple[str, dict[str, Any]]:
        train: Train = replace(self.train, **changed)
        where: dict[str, Any] = dict(step=step, epoch=1, folder=Path("state"), rank=0, train=train, sections=SECTIONS)
        error = guards.non_finite(self.model, self.batch, values, **where)
        assert isinstance(error, InputError)
        path = Path("state") / f"non_finite_step_{step}_rank_0.json"
        assert str(path) in str(error)
        return str(error), json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


@pytest.fixture
def case(workspace: Path) -> Case:
    return Case()


def test_the_message_says_what_where_and_what_to_try(case: Case):
    text, record = case.describe({"loss": math.nan, "loss_cls": 1.0, "grad_norm": math.inf}, step=7)
    assert "loss is nan, grad_norm is inf at step 7 (epoch 1)" in text
    assert "loss_cls" not in text
    assert f"images {', '.join(map(str, case.ids))}:" in text
    for words in (
        "a lower train.lr",
        "train.warmup_iters",
        "ghmc_smooth.bias_correction: true",
        "ghmr.bias_correction: true",
    ):
        assert words in text
    assert "train.grad_clip" not in text and "precision" not in text and "mend" not in text
    assert record["values"] == {"loss": "nan", "loss_cls": 1.0, "grad_norm": "inf"}
    assert (record["step"], record["epoch"], record["rank"]) == (7, 1, 0)


@pytest.mark.parametrize(
    ("changed", "words"),
    [(dict(grad_clip=None), "train.grad_clip: 35.0"), (dict(precision="fp16"), "train.precision: fp32 or bf16")],
)
def test_the_remedies_follow_the_parameters(case: Case, changed: dict[str, Any], words: str):
    assert words in case.describe({"loss": math.nan}, **changed)[0]
    assert words not in case.describe({"loss": math.nan})[0]


def test_the_start_of_the_moving_average_is_only_blamed_early_and_when_it_is_biased(case: Case):
    early = guards.EARLY / (1 - 0.75)
    assert "ghmc_smooth.bias_correction" in case.describe({"loss": math.nan}, step=int(early))[0]
    assert "ghmc_smooth.bias_correction" not in case.describe({"loss": math.nan}, step=int(early) + 1)[0]
    case.model.bbox_head.loss_cls.bias_correction = True
    text, _ = case.describe({"loss": math.nan})
    assert "ghmc_smooth.bias_correction" not in text and "ghmr.bias_correction" in text


def test_the_record_of_a_nan_gradient_says_in_which_part_it_is(case: Case):
    weights = dict(case.model.bbox_head.retina_cls.named_parameters())
    weights["weight"].register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), math.nan))
    text, record = case.fail()
    assert "grad_norm is nan" in text and "loss is" not in text
    gradients = record["gradients"]
    assert set(gradients) == {"backbone", "neck", *(f"bbox_head.{name}" for name in HEAD)}
    wrong = gradients.pop("bbox_head.retina_cls")
    assert wrong["norm"] == "nan"
    assert wrong["not_finite"] == weights["weight"][0].numel()
    assert wrong["first_not_finite"] == ["weight"]
    for name, part in gradients.items():
        assert part["not_finite"] == 0 and part["first_not_finite"] == [], name
        expected = [weight.grad for weight in case.model.get_submodule(name).parameters() if weight.grad is not None]
        assert part["norm"] == pytest.approx(float(torch.cat([each.flatten() for each in expected]).norm()), rel=1e-4)
        assert part["elements"] == sum(each.numel() for each in expected)
    assert record["weights"] == {"finite": True, "not_finite": [], "buffers_not_finite": []}


def test_the_record_of_a_nan_weight_names_it_and_counts_the_norms_that_are_nan(case: Case):
    with torch.no_grad():
        case.model.bbox_head.retina_cls.weight[0] = math.nan
    text, record = case.fail()
    assert "loss_cls is nan" in text
    assert "bbox_head.retina_cls.weight were not finite before" in text and "train.lr" not in text
    assert record["weights"]["not_finite"] == ["bbox_head.retina_cls.weight"]
    assert not record["weights"]["finite"]
    norms = record["gradient_norms"]
    assert norms["cls"]["nan"] > 0
    assert norms["box"]["nan"] == 0 and sum(norms["box"]["counts"]) > 0


def test_the_record_holds_the_images_the_state_of_ghm_and_the_histograms_of_the_batch(case: Case):
    case.model.bbox_head.retina_cls.weight.register_hook(lambda gradient: gradient * math.nan)
    _, record = case.fail()
    for image, sample in zip(record["images"], case.batch["data_samples"], strict=True):
        meta = sample.metainfo
        assert (image["img_id"], image["img_path"]) == (meta["img_id"], meta["img_path"])
        assert image["ori_shape"] == list(meta["ori_shape"]) and image["scale_factor"] == list(meta["scale_factor"])
        assert image["finite"] and image["broken_boxes"] == 0 and image["boxes"] == len(sample.gt_instances)
    head = case.model.bbox_head
    assert record["ghm"]["loss_cls"]["acc_sum"] == head.loss_cls.acc_sum.tolist()
    assert record["ghm"]["loss_bbox"]["acc_sum"] == head.loss_bbox.acc_sum.tolist()
    expected = gradient_norms.histograms(case.model, case.batch)
    for kind, norms in record["gradient_norms"].items():
        assert norms == {"counts": expected[kind].tolist(), "nan": 0}, kind
        assert sum(norms["counts"]) > 0


def test_a_loss_without_a_moving_average_has_no_state_and_no_remedy(workspace: Path):
    text, record = Case("fl_sl1").describe({"loss": math.nan})
    assert record["ghm"] == {}
    assert "momentum" not in text


def spoil_pixels(batch: dict[str, Any]) -> None:
    batch["inputs"][2] = torch.full_like(batch["inputs"][2], math.inf, dtype=torch.float32)


def spoil_boxes(batch: dict[str, Any]) -> None:
    boxes = batch["data_samples"][2].gt_instances.bboxes
    boxes.tensor[0, 2:] = boxes.tensor[0, :2]


@pytest.mark.parametrize("spoil", [spoil_pixels, spoil_boxes])
def test_a_spoilt_image_is_named_as_what_to_mend(case: Case, spoil: Callable[[dict[str, Any]], None]):
    spoil(case.batch)
    text, record = case.fail()
    assert f"mend images {case.ids[2]}, which" in text
    spoilt = [not image["finite"] or image["broken_boxes"] > 0 for image in record["images"]]
    assert spoilt == [False, False, True, False]


def test_the_detector_stays_as_it_was(case: Case):
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    case.describe({"loss": math.nan})
    torch.testing.assert_close(dict(case.model.state_dict()), before, rtol=0, atol=0)
    assert case.model.training


def test_what_cannot_be_measured_says_why_and_the_rest_is_written(case: Case, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(guards, "norms", broken)
    text, record = case.describe({"loss": math.nan})
    assert record["gradient_norms"] == {"error": "RuntimeError: out of memory"}
    assert record["weights"]["finite"] and "loss is nan" in text


def test_a_record_that_cannot_be_written_does_not_hide_the_error(case: Case):
    Path("state").write_text("a file in the way")
    where: dict[str, Any] = dict(step=1, epoch=1, folder=Path("state"), rank=0, train=case.train, sections=SECTIONS)
    text = str(guards.non_finite(case.model, case.batch, {"loss": math.nan}, **where))
    assert "loss is nan at step 1" in text
    assert "could not be written" in text


def test_a_long_list_of_images_is_cut(case: Case):
    case.batch = {name: [*each, *each] for name, each in case.batch.items()}
    text, record = case.describe({"loss": math.nan})
    assert f"images {', '.join(map(str, [*case.ids, case.ids[0]]))}, ...:" in text
    assert len(record["images"]) == 8


def test_arrays_and_numbers_that_are_not_finite_become_json():
    given = {
        "array": np.array([1.0, -np.inf]),
        "number": np.float32("nan"),
        "path": Path("a"),
        "flag": True,
        "no": None,
    }
    expected = {"array": [1.0, "-inf"], "number": "nan", "path": "a", "flag": True, "no": None}
    assert guards._plain(given) == expected
