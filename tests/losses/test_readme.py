"""The examples of `ghm/losses/README.md` run, and its worked example has the figures that it prints."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import ghm.losses
from ghm.losses import GHMC
from tests.losses.kinds import run

README = (Path(ghm.losses.__file__).parent / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_three_examples() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("example", EXAMPLES, ids=["bare", "config", "worked"])
def test_an_example_runs(example: str) -> None:
    exec(example, {})


def test_the_worked_example_has_the_figures_it_prints() -> None:
    names: dict[str, Any] = {}
    exec(EXAMPLES[2], names)
    assert f"= {names['loss']:.4f}`" in README
    plain = torch.nn.functional.softplus(torch.cat([names["logits"][:5, 0], -names["logits"][5]]))
    assert f"mean {plain.mean():.4f}" in README
    assert [f"{value:.4f}" for value in plain[[0, 4, 5]].tolist()] == re.findall(r"\| (\d\.\d{4}) \|\n", README)
    step = (names["logits"], names["labels"], torch.ones(6))
    none, _ = run(GHMC(bins=4, reduction="none"), *step)
    assert (none[:, 0] / plain).tolist() == pytest.approx([0.75] * 4 + [1.5] * 2)
    with_momentum = GHMC(bins=4, momentum=0.75)
    second = [run(with_momentum, *step)[0] for _ in range(2)][1]
    assert f"gives {second:.4f}" in README


def test_the_config_example_builds() -> None:
    from ghm.registry import MODELS

    names: dict[str, Any] = {}
    exec(EXAMPLES[1], names)
    assert MODELS.build(names["loss_cls"]).bins == 30
    assert MODELS.build(names["loss_bbox"]).mu == 0.02
