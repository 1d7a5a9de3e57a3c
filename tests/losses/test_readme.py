"""The examples of `docs/losses.md` run, and its worked example has the figures that it prints."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ghm.losses import GHMC
from tests.losses.kinds import run

PAGE = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_on_bare_tensors_runs() -> None:
    exec(EXAMPLES[0], {})


def test_the_worked_example_has_the_figures_it_prints() -> None:
    names: dict[str, Any] = {}
    exec(EXAMPLES[-1], names)
    assert f"= {names['loss']:.4f}`" in PAGE
    plain = torch.nn.functional.softplus(torch.cat([names["logits"][:5, 0], -names["logits"][5]]))
    assert f"mean {plain.mean():.4f}" in PAGE
    assert [f"{value:.4f}" for value in plain[[0, 4, 5]].tolist()] == re.findall(r"\| (\d\.\d{4}) \|\n", PAGE)
    step = (names["logits"], names["labels"], torch.ones(6))
    none, _ = run(GHMC(bins=4, reduction="none"), *step)
    assert (none[:, 0] / plain).tolist() == pytest.approx([0.75] * 4 + [1.5] * 2)
    with_momentum = GHMC(bins=4, momentum=0.75)
    second = [run(with_momentum, *step)[0] for _ in range(2)][1]
    assert f"gives {second:.4f}" in PAGE
