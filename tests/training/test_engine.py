"""Laws of a step: what it computes, what moves the weights and what does not, and that the host waits for nothing."""

import copy
import math
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from benchmarks.faults import Trainer, differences
from ghm import config, params
from ghm.runs import LOG, MODEL
from ghm.training import batches, engine
from ghm.training.batches import Batch
from ghm.training.engine import Engine, Numbers
from ghm.training.processes import Processes
from tests.training.conftest import Change, log, result
from tests.waits import all_counted

SCALE = 2.0**8  # with which float16 does not overflow here
ACTS = 0.05  # a largest norm that is below that of every gradient here

State = dict[str, Tensor]


@dataclass
class Bench:
    """An engine of the tiny preset, the batches of an epoch, and the gradients that it has moved weights by."""

    engine: Engine
    batches: list[Batch]
    gradients: list[State]

    def step(self, *parts: Batch, lr: float = 0.01) -> Numbers:
        return self.engine.step([*parts], lr, [])

    def weights(self) -> State:
        return {name: weight.detach().clone() for name, weight in self.engine.weights.items()}

    def moments(self) -> list[State]:
        """What the optimiser remembers of each weight."""
        return copy.deepcopy([*self.engine.optimizer.state.values()])


@pytest.fixture
def bench(change: Change) -> Callable[..., Bench]:
    """Build one, with `section__key` in the parameters of the workspace."""

    def build(variant: str = "ghmc_ghmr", **values: Any) -> Bench:
        change(**values)
        cfg = config.for_run(params.load(), variant, 0)
        built, gradients = Engine(cfg, Processes(), begins=True), []
        built.model.train()
        update = built._update

        def noted(norm: Tensor, lr: float) -> None:
            gradients.append({name: weight.grad.clone() for name, weight in built.weights.items()})
            update(norm, lr)

        built._update = noted
        return Bench(built, [*batches.loader(cfg, Processes())], gradients)

    return build


def spoilt(batch: Batch) -> Batch:
    """With a pixel that is infinite."""
    pixel_BHW3 = batch.pixel_BHW3.float()
    pixel_BHW3[0, 0, 0] = math.inf
    return replace(batch, pixel_BHW3=pixel_BHW3)


def assert_equal(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_whose_loss_is_not_finite_moves_no_weight_nor_does_a_later_one(
    bench: Callable[..., Bench], optimizer: str, precision: str
):
    given = bench(train__optimizer=optimizer, train__precision=precision)
    given.engine.scale = torch.tensor(SCALE if precision == "fp16" else 1.0)
    start = given.weights()
    given.step(given.batches[0])
    before, moments = given.weights(), given.moments()
    assert any(not torch.equal(before[name], start[name]) for name in start)
    values, _ = given.step(spoilt(given.batches[1])).read()
    assert not math.isfinite(values["loss"]) and not math.isfinite(values["loss_cls"])
    values, _ = given.step(given.batches[2]).read()
    assert all(map(math.isfinite, values.values()))
    assert given.engine.spoilt
    assert_equal(given.weights(), before)
    assert_equal(given.moments(), moments)


def test_a_first_step_that_is_not_finite_moves_no_weight(bench: Callable[..., Bench]):
    given = bench()
    start = given.weights()
    given.step(spoilt(given.batches[0]))
    given.step(given.batches[1])
    assert_equal(given.weights(), start)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_stops_the_weights_too_and_is_named(bench: Callable[..., Bench], precision: str):
    given = bench(train__precision=precision)
    name = "bbox_head.retina_cls.weight"
    given.engine.weights[name].register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), math.nan))
    start = given.weights()
    numbers = given.step(given.batches[0])
    values, _ = numbers.read()
    assert [key for key, value in values.items() if not math.isfinite(value)] == ["grad_norm"]
    assert [*compress(numbers.weights, (~numbers.norm_W.isfinite()).tolist())] == [name]
    assert given.engine.spoilt
    assert_equal(given.weights(), start)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("first", [True, False])
def test_with_float16_an_overflow_of_the_gradient_leaves_out_that_step_alone_and_halves_the_scale(
    bench: Callable[..., Bench], optimizer: str, first: bool
):
    values = dict(train__optimizer=optimizer, train__precision="fp16")
    one, other = bench("fl_sl1", **values), bench("fl_sl1", **values)
    scale, too_large = torch.tensor(SCALE), torch.tensor(2.0**40)
    for given in (one, other):
        given.engine.scale = scale
        if not first:
            given.step(given.batches[0])
    one.engine.scale = too_large
    before, moments = one.weights(), one.moments()
    measured, _ = one.step(one.batches[1]).read()
    assert not math.isfinite(measured.pop("grad_norm")) and all(map(math.isfinite, measured.values()))
    assert not one.engine.spoilt and one.engine.scale == too_large / 2 and one.engine.steps_at_scale == 0
    assert_equal(one.weights(), before)
    if moments:
        assert_equal(one.moments(), moments)
    else:  # AdamW's, which begin at zero
        assert not any(value.any() for state in one.moments() for value in state.values())
    one.engine.scale = scale
    for given in (one, other):
        given.step(given.batches[2])
    assert_equal(one.weights(), other.weights())  # as if it had not been taken
    assert_equal(one.moments(), other.moments())
    assert any(not torch.equal(weight, before[name]) for name, weight in one.weights().items())


def test_the_scale_of_float16_doubles_after_steps_without_an_overflow(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine, "GROWN_AFTER", 2)
    given = bench(train__precision="fp16")
    given.engine.scale = torch.tensor(16.0)
    scales = []
    for batch in given.batches[:5]:
        given.step(batch)
        scales.append(float(given.engine.scale))
    assert scales == [16, 32, 32, 64, 64]


def test_with_float16_the_numbers_are_without_its_scale(bench: Callable[..., Bench]):
    # Not GHM, which weighs a box anew that rounding moves to another region.
    half, whole = (bench("fl_sl1", train__precision=precision) for precision in ("fp16", "fp32"))
    half.engine.scale = torch.tensor(SCALE)
    found, expected = (given.step(given.batches[0]).read()[0] for given in (half, whole))
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("clip", [None, 35.0, ACTS])
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [("adamw", {}), ("adamw", {"betas": [0.8, 0.9], "amsgrad": True}), ("sgd", {}), ("sgd", {"nesterov": True})],
)
def test_the_update_is_that_of_torch_by_gradients_cut_to_the_largest_norm(
    bench: Callable[..., Bench], optimizer: str, options: dict[str, Any], clip: float | None
):
    given = bench(train__optimizer=optimizer, train__optimizer_options=options, train__grad_clip=clip)
    theirs = {name: torch.nn.Parameter(weight) for name, weight in given.weights().items()}
    kind: Any = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
    usual = {"momentum": 0.9} if optimizer == "sgd" else {}
    reference = kind(theirs.values(), lr=1.0, weight_decay=0.05, foreach=False, **usual, **options)
    for batch, lr in zip(given.batches, (0.01, 0.03, 0.002, 0.02), strict=False):
        values, _ = given.step(batch, lr=lr).read()
        for name, weight in theirs.items():
            weight.grad = given.gradients[-1][name]
        norm = clip_grad_norm_(theirs.values(), math.inf if clip is None else clip)
        assert values["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
        assert clip != ACTS or norm > ACTS
        reference.param_groups[0]["lr"] = lr
        reference.step()
    torch.testing.assert_close(given.weights(), {name: weight.detach() for name, weight in theirs.items()})


def test_what_the_loop_tells_a_step_comes_back_with_its_numbers(bench: Callable[..., Bench]):
    given = bench(train__precision="fp16")
    assert given.engine.step(given.batches[:1], 0.01, [1.0, 0.0, 3.0]).read()[1] == [1.0, 0.0, 3.0]


@pytest.mark.parametrize("variant", ["ghmc_ghmr", "fl_sl1"])
def test_the_gradient_of_parts_is_the_mean_of_theirs_taken_one_after_the_other(
    bench: Callable[..., Bench], variant: str
):
    together, apart = bench(variant), bench(variant)
    parts = together.batches[:3]
    values, _ = together.step(*parts).read()
    alone = [apart.step(part, lr=0.0).read()[0] for part in parts]  # moves GHM's averages, and no weight
    for name, gradient in together.gradients[0].items():
        mean = torch.stack([gradients[name] for gradients in apart.gradients]).mean(0)
        torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-5)
    for name in ("loss", "loss_cls", "loss_bbox"):
        assert values[name] == pytest.approx(sum(each[name] for each in alone) / 3, rel=1e-5)
    assert values["positives"] == sum(each["positives"] for each in alone)
    kept = [dict(given.engine.detector.named_buffers()) for given in (together, apart)]
    assert_equal(*kept)


@pytest.mark.parametrize("same", [True, False])
def test_focal_loss_and_smooth_l1_of_one_batch_are_the_mean_of_its_parts_weighted_by_their_positives(
    bench: Callable[..., Bench], same: bool
):
    """So parts with as many positives are one batch. Where the population of GHM is a part, there is no such law."""
    given = bench("fl_sl1", model__norm_eval=True)
    dataset = batches.loader(given.engine.cfg, Processes()).dataset
    samples = [dataset[(0, index)] for index in range(len(dataset))]
    samples = [sample for sample in samples if len(sample.label_N)]  # one without boxes counts as 1
    first, second = samples[:4], samples[:4] if same else samples[4:8]
    parts = [batches.collate(first), batches.collate(second)]
    positive = [given.step(part, lr=0.0).read()[0]["positives"] for part in parts]
    assert same == (positive[0] == positive[1])
    given.step(batches.collate(first + second), lr=0.0)
    given.step(*parts, lr=0.0)
    *alone, whole, accumulated = given.gradients
    share = positive[0] / sum(positive)
    weighted = {name: share * alone[0][name] + (1 - share) * alone[1][name] for name in whole}
    torch.testing.assert_close(whole, weighted, rtol=1e-4, atol=1e-5)
    if same:
        torch.testing.assert_close(accumulated, whole, rtol=1e-4, atol=1e-5)


def test_a_killed_run_whose_steps_have_parts_goes_on_to_the_same_bits_in_as_many_steps(
    workspace: Path, change: Change, trainer: Trainer, other: Callable[[], Path]
):
    change(train__accumulate=2, train__val_images=0, machine__checkpoint_minutes=1e-6, train__epochs=20)
    alone = other()
    trainer.finish(alone)
    assert pd.read_csv(result(alone) / LOG)["step"].tolist() == list(range(6, 126, 6))
    for seconds in range(1, 20):  # its first checkpoint may be the one that is being written
        assert trainer.run(workspace, signal.SIGKILL, seconds, at_write=True) == -signal.SIGKILL
        if any(workspace.glob(".state/*/step_*")):
            break
    trainer.finish(workspace)
    assert "going on from" in log(workspace)
    assert list(differences(workspace, alone)) == []


def test_parts_of_one_image_are_the_same_training_in_one_process_and_in_two(
    workspace: Path, change: Change, trainer: Trainer, torchrun: Trainer, other: Callable[[], Path]
):
    change(
        variants__ghmc_ghmr={"cls": "focal", "box": "smooth_l1"},  # GHM's averages would be of a process
        model__norm_eval=True,
        train__optimizer="sgd",
        train__accumulate=4,
        train__val_images=0,
    )
    alone = other()
    trainer.finish(alone)
    change(train__accumulate=2, machine__launcher="pytorch")
    torchrun.finish(workspace)
    one, two = (pd.read_csv(result(folder) / LOG) for folder in (alone, workspace))
    pd.testing.assert_frame_equal(one, two, rtol=1e-3)
    one, two = (torch.load(result(folder) / MODEL, weights_only=True)["state_dict"] for folder in (alone, workspace))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("precision", "accumulate"), [("fp32", 1), ("fp16", 2)])
@pytest.mark.parametrize("variant", ["ghmc_ghmr", "ghmc_smooth", "fl_sl1"])
def test_the_host_waits_for_nothing_between_the_arrival_of_a_batch_and_the_numbers_of_its_step(
    bench: Callable[..., Bench],
    variant: str,
    precision: str,
    accumulate: int,
    monkeypatch: pytest.MonkeyPatch,
):
    given = bench(variant, train__precision=precision, train__ema_momentum=0.5)
    given.step(given.batches[0])  # makes the anchors
    arrived = [batches.prepare(given.engine.detector, batch) for batch in given.batches[:accumulate]]
    monkeypatch.setattr(batches, "prepare", lambda _detector, _batch: arrived.pop(0))
    with all_counted() as count:
        numbers = given.step(*given.batches[:accumulate])
        assert count.operators.total() > 500 and not arrived
        assert not count.waits
        numbers.read()
        float(numbers.norm_W[0])
    assert count.waits == {"tolist": 1, "aten._local_scalar_dense.default": 1}  # it sees both kinds


@pytest.mark.parametrize("padded", [True, False])
def test_nothing_waits_for_the_device_while_a_batch_is_brought_there(bench: Callable[..., Bench], padded: bool):
    given = bench()
    batch = given.batches[0]
    if padded:
        batch.size_B2[0] -= 5
    image_B3HW, truth = batches.prepare(given.engine.detector.to("meta"), batch)  # where no value can be looked at
    assert {image_B3HW.device.type, truth.box_BG4.device.type, truth.label_BG.device.type} == {"meta"}
    with pytest.raises(RuntimeError):
        image_B3HW.sum().item()


def test_the_moving_average_is_the_recursion_from_the_first_weights_on(bench: Callable[..., Bench]):
    given = bench(train__ema_momentum=0.25)
    assert given.engine.result is given.engine.average
    expected = given.weights()
    for batch in given.batches[:3]:
        given.step(batch)
        expected = {name: value + 0.25 * (given.weights()[name] - value) for name, value in expected.items()}
    average = given.engine.average
    found = {name: value for name, value in average.named_parameters() if name in expected}
    torch.testing.assert_close(found, expected)
    assert_equal(dict(average.named_buffers()), dict(given.engine.detector.named_buffers()))
    assert not any(value.requires_grad for value in average.parameters())


def test_without_a_moving_average_the_detector_is_the_result(bench: Callable[..., Bench]):
    given = bench()
    assert given.engine.result is given.engine.detector
