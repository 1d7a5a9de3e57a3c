"""Laws of the guard rails: no alarm for what is well; for what is not, what, where and how to mend it."""

import math
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from ruamel.yaml import YAML
from torch.utils.data import DataLoader, Dataset

from ghm import config, data, params, sections
from ghm.errors import InputError
from ghm.registry import DATASETS, MODELS
from ghm.training import guards
from ghm.training.batches import Batch, collate, prepare
from ghm.training.guards import Watch
from tests.conftest import ROOT


def warnings_of(losses: list[float]) -> list[tuple[int, str]]:
    watch = Watch()
    return [(step, text) for step, loss in enumerate(losses, 1) if (text := watch.step(step, loss))]


def test_noise_of_small_batches_is_not_an_explosion():
    noise = random.Random(0)
    assert not warnings_of([noise.lognormvariate(0, 1) for _ in range(5000)])


def test_a_loss_that_diverges_is_warned_of_before_it_overflows():
    [(step, text)] = warnings_of([1.0] * 60 + [1.5**step for step in range(200)])
    assert step < 75
    assert re.search(rf"the loss explodes: \S+ at step {step}, .*train\.lr", text)


def test_nothing_is_an_explosion_before_there_is_something_to_hold_it_against():
    assert not warnings_of([1.0] * (guards.WINDOW - 1) + [1e6] * guards.RUN)
    assert warnings_of([1.0] * guards.WINDOW + [1e6] * guards.RUN)


def refused(step: Callable[[], Any], **changes: Any) -> str:
    """The sentence about a step that ends for want of memory."""
    parameters = params.load(ROOT / "params.yaml")
    train, machine = replace(parameters.train, image_scale=(1333, 800)), replace(parameters.machine, **changes)
    with pytest.raises(InputError) as caught, guards.enough_memory(replace(parameters, train=train, machine=machine)):
        step()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("allocate", [lambda: torch.empty(10**15), lambda: np.empty(10**15), lambda: bytearray(10**15)])
def test_memory_that_runs_out_is_a_sentence_that_says_what_to_lower(allocate: Callable[[], Any]):
    lower = "lower train.batch_size (now 8), train.image_scale (now [1333, 800])"
    assert f"this computer has not enough memory: {lower};" in refused(allocate)
    assert f"{lower}, machine.workers (now 2);" in refused(allocate, workers=2)


class Killed(Dataset):
    """Ends the process that asks for an image, as the system does when memory runs out."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, _index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0


def test_a_worker_that_the_system_has_ended_is_a_sentence():
    assert "machine.workers (now 2)" in refused(lambda: list(DataLoader(Killed(), num_workers=2)), workers=2)


def test_the_memory_of_a_gpu_is_named_and_bfloat16_beside_what_to_lower():
    def step() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 79 GiB")

    said = refused(step, workers=4)
    assert said.startswith(
        "the GPU has not enough memory: lower train.batch_size (now 8), train.image_scale (now [1333, "
    )
    assert "or set train.precision: bf16;" in said and "machine.workers" not in said


def test_an_evaluation_without_memory_is_told_to_lower_its_own_batch_size():
    parameters = params.load(ROOT / "params.yaml")
    given = replace(parameters, evaluate=replace(parameters.evaluate, batch_size=5))
    with pytest.raises(InputError) as caught, guards.enough_memory(given, "evaluate"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert "lower evaluate.batch_size (now 5), train.image_scale" in str(caught.value)
    assert "or set evaluate.precision: bf16;" in str(caught.value)


def test_other_errors_are_left_as_they_are():
    with pytest.raises(RuntimeError, match="shapes"), guards.enough_memory(params.load(ROOT / "params.yaml")):
        raise RuntimeError("shapes do not fit")


# An allocation of a tensor fails here, which is an error of Python's. One of some bytes in a library would be its end.
UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
from ghm import params, training
from ghm.errors import InputError
import mmdet.datasets, mmdet.models
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20, resource.RLIM_INFINITY))
try:
    training.train(params.load(), "ghmc_ghmr", Path("runs/ghmc_ghmr"))
except InputError as error:
    sys.exit(str(error))
"""


def test_a_training_that_a_computer_is_too_small_for_ends_with_the_sentence(workspace: Path):
    content = sections.read(Path("params.yaml"))
    content["train"] |= {"image_scale": [2048, 2048]}
    YAML().dump(content, Path("params.yaml"))
    # Not forked: a child has the parent's pool of threads without its threads.
    command = [sys.executable, "-c", UNDER_A_LIMIT]
    child = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 1, child.stderr
    assert "lower train.batch_size (now 4), train.image_scale (now [2048, 2048])" in child.stderr
    assert not Path("runs").exists()


class Case:
    """The detector of the tiny preset, four of its images, and one step on them."""

    def __init__(self, variant: str = "ghmc_ghmr") -> None:
        self.parameters, self.variant = params.load(), variant
        self.gradients: list[str] = []
        cfg = config.build(self.parameters, variant, data.read_manifest(self.parameters), None, 0)
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope("mmdet"):
            self.model: Any = MODELS.build(cfg.model)
            dataset: Any = DATASETS.build(cfg.train_dataloader.dataset)
            self.batch = collate([dataset[index] for index in range(4)])
        self.model.train()
        self.images = self.batch.paths

    def fail(self) -> str:
        """Forward and backward, and the message."""
        losses = self.model(*prepare(self.model, self.batch), mode="loss")
        terms = {name: torch.stack(values).sum() for name, values in losses.items()}
        (terms["loss_cls"] + terms["loss_bbox"]).backward()
        norms = {name: weight.grad.norm() for name, weight in self.model.named_parameters() if weight.grad is not None}
        self.gradients = [name for name, norm in norms.items() if not norm.isfinite()]
        values = {name: float(term.detach()) for name, term in terms.items()}
        return self.message({**values, "grad_norm": float(sum(norms.values()))})

    def message(self, values: dict[str, float], step: int = 1, **changed: Any) -> str:
        parameters = replace(self.parameters, train=replace(self.parameters.train, **changed))
        error = guards.non_finite(
            self.model,
            [self.batch],
            values,
            self.gradients,
            step=step,
            epoch=1,
            parameters=parameters,
            variant=self.variant,
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


def spoil_pixels(batch: Batch) -> None:
    object.__setattr__(batch, "pixel_BHW3", batch.pixel_BHW3.float())
    batch.pixel_BHW3[2] = math.inf


def spoil_boxes(batch: Batch) -> None:
    batch.truth.box_BG4[2, 0, 2:] = batch.truth.box_BG4[2, 0, :2]


@pytest.mark.parametrize("spoil", [spoil_pixels, spoil_boxes])
def test_a_spoilt_image_is_to_be_mended(case: Case, spoil: Callable[[Batch], None]):
    spoil(case.batch)
    assert f"mend images {case.images[2]}, which" in case.fail()
