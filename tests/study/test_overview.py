"""Laws of the first part of a page of data sets: a row a data set, what they say together, and what is missing."""

from pathlib import Path
from typing import Any

import pytest

from ghm.errors import InputError
from tests.study.conftest import IMAGES, REPORTS, Trainer, curve, define, run_study
from tests.study.test_page import SEEDS, table

CURVES = {name: curve(name, swept=False) for name in ("fl_sl1", "ghmc_sl1", "ghmc_ghmr")}
GAINS = {"ghmc_sl1": {"digits": 1.0, "a": 3.0, "b": 0.0}, "ghmc_ghmr": {"digits": -4.0, "a": -2.0, "b": -3.0}}
SIZES = {"digits": IMAGES, "a": {"train": 140, "val": 30, "test": 31}, "b": {"train": 600, "val": 150, "test": 250}}


def name_of(params: dict[str, Any]) -> str:
    return "digits" if params["data"]["name"] == "digits" else Path(params["data"]["root"]).name


def level(variant: str, params: dict[str, Any]) -> tuple[float, float]:
    noise = SEEDS.get(variant, (0.07, 0.0, -0.07))[params["seeds"][0]]
    return (50 + GAINS.get(variant, {}).get(name_of(params), 0.0) + noise,) * 2


@pytest.fixture
def sets(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Three data sets of different sizes, of which GHM-C + Smooth L1 is better on two and level on one."""
    for name in ("a", "b"):
        Path("sets", name).mkdir(parents=True)
    monkeypatch.setenv("SETS", str(Path("sets").absolute()))
    trainer.level, trainer.images = level, lambda params: SIZES[name_of(params)]
    return trainer


def ask(**keys: Any) -> str:
    conditions = {
        "digits": {},
        "a": {"data.name": "custom", "data.root": "$SETS/a", "train.epochs": 12},
        "b": {"data.name": "custom", "data.root": "$SETS/b", "train.epochs": 12, "train.batch_size": 4},
    }
    return define(**{"parameter": None, "values": [], "curves": CURVES, "conditions": conditions, **keys})


def test_the_page_begins_with_a_row_for_each_data_set_their_mean_and_a_count_of_verdicts(sets: Trainer):
    _, page = run_study(ask())
    rows = table(page)
    assert [row["data set"] for row in rows] == ["digits", "a", "b", "pooled", "better / worse / not distinguishable"]
    assert [row["ghmc_sl1, difference"].split()[0] for row in rows[:4]] == ["+1.0", "+3.0", "+0.0", "+1.3"]
    words = [row["ghmc_sl1, difference"].split("] ")[1] for row in rows[:4]]
    assert words == ["better", "better", "not distinguishable", "better"]
    assert [row["ghmc_sl1, difference"] for row in rows[4:]] == ["2 / 0 / 1"]
    assert [row["ghmc_ghmr, difference"] for row in rows[4:]] == ["0 / 3 / 0"]
    assert [row["fl_sl1, AP on test"][:4] for row in rows[:3]] == ["50.0"] * 3
    assert "**better**" in page
    assert "**not distinguishable** |" not in page


def test_verdicts_of_data_sets_hold_together_and_those_of_pooled_differences_are_a_family_of_their_own(sets: Trainer):
    results, page = run_study(ask())
    compared = [row["differences"]["AP"] for row in results["rows"] if row["differences"]["AP"]]
    assert [minus["comparisons"] for minus in compared] == [6] * 6
    pooled = results["pooled"]
    assert [pooled[name]["AP"]["comparisons"] for name in GAINS] == [2, 2]
    for name, gains in GAINS.items():
        assert pooled[name]["AP"]["estimate"] == pytest.approx(sum(gains.values()) / 300, abs=1e-3)
        errors = [
            row["differences"]["AP"]["error"]["standard"] for row in results["rows"] if row["cell"]["curve"] == name
        ]
        together = sum(error**2 for error in errors) ** 0.5 / 3
        assert pooled[name]["AP"]["error"]["standard"] == pytest.approx(together, rel=1e-3)
    assert "corrected for all 6 comparisons of all data sets together" in page
    assert "its verdicts (2 comparisons) are corrected apart" in page


def test_each_data_set_is_listed_with_its_images_and_epochs_and_how_it_was_trained(sets: Trainer):
    results, page = run_study(ask(seeds=[0]))
    assert results["images"] == {
        name: {split: number for split, number in sizes.items() if split != "train"} for name, sizes in SIZES.items()
    }
    first = "- **Data set digits**: 3,200 images to train, 3 epochs (checksum 0123); measured on 400 of `val` and 800"
    assert first in page
    assert "- **Data set a**: 140 images to train, 12 epochs (checksum 0123); measured on 30 of `val` and 31" in page
    assert page.count("- **Model**: ") == page.count("- **Machine**: ") == 1, "said once where they have it in common"
    lines = [line for line in page.splitlines() if line.startswith("- **Training**")]
    assert [line.partition(", learning")[0] for line in lines] == [
        "- **Training**, digits: 3 epochs, 8 images per step, adamw",
        "- **Training**, a: 12 epochs, 8 images per step, adamw",
        "- **Training**, b: 12 epochs, 4 images per step, adamw",
    ]
    assert "### b (`data.name: custom`, `data.root: $SETS/b`, `train.epochs: 12`, `train.batch_size: 4`)" in page
    assert str(Path.cwd()) not in page + (REPORTS / "asked.json").read_text(), "no path of this machine"


def test_a_curve_that_is_missing_on_a_data_set_is_not_pooled_and_that_is_said(sets: Trainer):
    sets.level = lambda variant, params: (
        "error: not finite" if (variant, name_of(params)) == ("ghmc_ghmr", "b") else level(variant, params)
    )
    with pytest.raises(InputError, match="1 of 9 training runs failed"):
        run_study(ask(seeds=[0]))
    results, page = run_study("--table", "asked")
    rows = table(page)
    assert [row["ghmc_ghmr, difference"] for row in rows[2:]] == [
        "missing",
        "left out: not on all data sets",
        "0 / 2 / 0",
    ]
    assert results["pooled"]["ghmc_ghmr"] == {"AP": None, "AP50": None, "AP75": None}
    assert results["pooled"]["ghmc_sl1"]["AP"]["comparisons"] == 1
    assert page.index("**Not complete: 1 of 9 training runs are missing.**") < page.index("| data set")


def test_a_data_set_without_a_training_run_is_missing_everywhere(sets: Trainer):
    sets.level = lambda variant, params: "error: no" if name_of(params) == "a" else level(variant, params)
    with pytest.raises(InputError, match="3 of 9 training runs failed"):
        run_study(ask(seeds=[0]))
    results, page = run_study("--table", "asked")
    assert [*table(page)[1].values()] == ["a", "–", "missing", "missing"]  # noqa: RUF001
    assert {*results["images"]} == {"digits", "b"}


def test_what_was_chosen_on_each_data_set_is_what_is_compared_and_pooled(sets: Trainer):
    def best_at(variant: str, params: dict[str, Any]) -> tuple[float, float]:
        first, gain = (10, 2.0) if name_of(params) == "a" else (20, 1.0)
        ap = 50 + (variant == "ghmc_sl1") * (gain if params["ghmc"]["bins"] == first else -gain)
        return (ap + SEEDS[variant][params["seeds"][0]],) * 2

    sets.level = best_at
    curves = {"FL": curve("fl_sl1", swept=False), "GHM-C": curve("ghmc_sl1")}
    _, page = run_study(ask(parameter="ghmc.bins", values=[10, 20], curves=curves))
    assert [row["GHM-C, difference"].split()[0] for row in table(page)[:4]] == ["+1.0", "+2.0", "+1.0", "+1.3"]
    assert "corrected for all 3 comparisons of all data sets together" in page


@pytest.mark.parametrize(
    "keys",
    [
        {"conditions": {"clean": {}, "noisy": {"data.label_noise": 0.3}, "smaller": {"digits.image_size": 96}}},
        {"conditions": {"a": {"data.name": "custom", "data.root": "$SETS/a"}}},
        {
            "parameter": "train.epochs",
            "values": [1, 2],
            "curves": {name: curve(name) for name in ("fl_sl1", "ghmc_sl1")},
        },
    ],
)
def test_conditions_that_share_images_or_have_several_answers_are_not_pooled(keys: dict[str, Any], sets: Trainer):
    results, page = run_study(ask(seeds=[0], **keys))
    assert "pooled" not in results
    assert "pooled" not in page
    assert "data set" not in table(page)[0]
