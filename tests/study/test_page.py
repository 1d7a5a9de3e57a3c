"""Laws of what is said of a study: chosen on one split, reported on another, and nothing missing in silence."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt

from ghm.errors import InputError
from ghm.evaluation.bootstrap import Resampled
from ghm.study import definition, figure
from ghm.study.comparison import gather
from tests.report.conftest import cells
from tests.study.conftest import REPORTS, Trainer, curve, define, run_study

SEEDS = {"fl_sl1": (0.05, -0.05, 0.0), "ghmc_sl1": (-0.1, 0.1, 0.0)}  # what seeds 0, 1, 2 do to AP in percent


def table(page: str) -> list[dict[str, str]]:
    """The first table of a page, by the heads of its columns."""
    html = MarkdownIt("commonmark").enable("table").render(page).split("</table>")[0]
    texts, width = cells(html), html.count("<th") - html.count("<thead")
    rows = [texts[start : start + width] for start in range(0, len(texts), width)]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def by_bins(val: dict[int, float], test: dict[int, float], fl: float = 50.0):
    """AP by the bins of GHM-C, and that of Focal Loss."""

    def level(variant: str, params: dict[str, Any]) -> tuple[float, float]:
        bins, seed = params["ghmc"]["bins"], SEEDS[variant][params["seeds"][0]]
        return (fl + seed, fl + seed) if variant == "fl_sl1" else (val[bins] + seed, test[bins] + seed)

    return level


def test_what_is_reported_is_what_val_chose_though_another_is_better_on_test(trainer: Trainer):
    trainer.level = by_bins(val={10: 52.0, 20: 51.0}, test={10: 51.0, 20: 55.0})
    results, page = run_study(define())
    assert [row["cell"]["value"] for row in results["rows"] if row["chosen"]] == [10]
    words = (
        "- GHM-C with `ghmc.bins` **10**, chosen on `val` with 52.0 AP, has 51.0 AP on `test` and is **better** than FL"
    )
    assert f"{words}: +1.0 AP, 95 % interval +" in page
    assert "Its verdict on `test` is fair; other rows (1 comparison) are corrected apart." in page
    assert "**20**" not in page
    rows = table(page)
    assert [row["ghmc.bins"] for row in rows] == ["–", "10", "20"]  # noqa: RUF001
    assert rows[1]["AP on val, each seed"] == "52.0 (51.9, 52.1, 52.0)"
    assert results["rows"][1]["chosen_on"] == {"0": 0.519, "1": 0.521, "2": 0.52}
    assert results["rows"][1]["reported_on"] == {"0": 0.509, "1": 0.511, "2": 0.51}


def test_verdicts_are_those_of_the_difference_on_the_same_images_and_seeds(trainer: Trainer):
    test = {5: 51.0, 10: 49.0, 20: 50.05}
    trainer.level = by_bins(val=test, test=test)
    results, page = run_study(define(values=[5, 10, 20]))
    assert [row["verdict"] for row in table(page)] == ["–", "better", "worse", "not distinguishable"]  # noqa: RUF001
    reference, better = results["rows"][:2]
    # Images make AP uncertain by 2 %, and the difference, on the same images, by far less.
    assert better["intervals"]["AP"]["low"] < reference["intervals"]["AP"]["high"]
    assert better["differences"]["AP"]["estimate"] == pytest.approx(0.01)
    assert 0 < better["differences"]["AP"]["low"] < better["differences"]["AP"]["high"] < 0.02
    assert better["paired"] == 3


def test_what_is_chosen_is_corrected_under_all_conditions_and_the_values_that_were_not_apart(trainer: Trainer):
    test = {5: 51.0, 10: 49.0, 20: 50.05}
    trainer.level = by_bins(val=test, test=test)
    results, page = run_study(define(values=[5, 10, 20], conditions={"clean": {}, "noisy": {"data.label_noise": 0.3}}))
    number = {(row["cell"]["value"], row["cell"]["condition"]): row["differences"]["AP"] for row in results["rows"]}
    assert [number[5, name]["comparisons"] for name in ("clean", "noisy")] == [2, 2]
    assert [number[value, name]["comparisons"] for name in ("clean", "noisy") for value in (10, 20)] == [4] * 4
    assert number[5, "clean"]["verdict"] == "better"
    assert "**2 comparisons**: the verdicts are corrected for them." in page
    assert "is fair, and corrected for all that was chosen, under all conditions; other rows (4 comparisons)" in page
    for row in table(page)[1:]:
        least = number[int(row["ghmc.bins"]), "clean"]["detectable"]
        assert float(row["detectable"]) == pytest.approx(100 * least, abs=0.06)


def test_a_swept_reference_is_compared_at_the_same_value_and_nothing_is_chosen(trainer: Trainer):
    def level(variant: str, params: dict[str, Any]) -> tuple[float, float]:
        noise = params["data"]["label_noise"]
        ap = 60 - 50 * noise if variant == "fl_sl1" else 55 - 5 * noise
        return (ap + SEEDS[variant][params["seeds"][0]],) * 2

    trainer.level = level
    curves = {"FL": curve("fl_sl1"), "GHM-C": curve("ghmc_sl1")}
    results, page = run_study(define(parameter="data.label_noise", values=[0.0, 0.4], curves=curves))
    assert [row["verdict"] for row in table(page)] == ["–", "–", "worse", "better"]  # noqa: RUF001
    assert not any(row["chosen"] for row in results["rows"])
    assert "- GHM-C with `data.label_noise` **0.4** has 53.0 AP on `test` and is **better** than FL: +13.0 AP" in page


def test_missing_seeds_are_said_and_what_there_is_is_compared_with_the_same_seeds(trainer: Trainer):
    level = by_bins(val={10: 52.0, 20: 53.0}, test={10: 51.0, 20: 52.0})
    trainer.level = lambda variant, params: (
        "error: not finite" if params["ghmc"]["bins"] == 20 and params["seeds"] != [0] else level(variant, params)
    )
    name = define()
    with pytest.raises(InputError, match="2 of 9 training runs failed"):
        run_study(name)
    results, page = run_study("--table", name)
    assert len(trainer.trained) == 9, "a table trains nothing"
    assert "**Not complete: 2 of 9 training runs are missing.**" in page
    assert "- clean, GHM-C at 20, seed 2: not finished, its log ends: error: not finite" in page
    assert [row["seeds"] for row in table(page)] == ["3 of 3", "3 of 3", "1 of 3"]
    assert (sorted(results["rows"][2]["missing"]), results["rows"][2]["paired"]) == (["1", "2"], 1)
    assert table(page)[2]["verdict"] == "better (one seed)"
    assert results["rows"][1]["chosen"], "a value that diverged under some seeds is not chosen for the others"


def test_curves_without_a_parameter_are_compared_whatever_they_are_called_and_none_is_chosen(trainer: Trainer):
    first, second = "F|*L* $a$ $b$", "<i>_c\nd"
    curves = {first: curve("fl_sl1", swept=False), second: curve("ghmc_sl1", swept=False)}
    trainer.level = by_bins(val={30: 52.0}, test={30: 48.0})
    results, page = run_study(define(parameter=None, values=[], curves=curves))
    assert [row["chosen"] for row in results["rows"]] == [False, False]
    assert [(row["curve"], row["minus F|*L* $a$ $b$"][:4]) for row in table(page)] == [
        (first, "–"),  # noqa: RUF001
        ("<i>_c d", "-2.0"),
    ]
    assert " has 48.0 AP on `test` and is **worse** than F\\|\\*L\\* &#36;a&#36; &#36;b&#36;: -2.0 AP" in page
    assert "chosen" not in page


def test_a_data_set_with_one_split_warns_that_it_chose_by_what_it_reports(trainer: Trainer):
    for before, after in (("name: digits ", "name: coco "), ("split: test ", "split: val ")):
        Path("params.yaml").write_text(Path("params.yaml").read_text().replace(before, after))
    trainer.level = lambda variant, params: (50.0,)
    results, page = run_study(define(seeds=[0]))
    assert results["chosen_on"] == results["reported_on"] == "val"
    assert "its AP and its difference lean upward. Its verdict is corrected for all values." in page
    assert {row["differences"]["AP"]["comparisons"] for row in results["rows"] if row["cell"]["value"]} == {2}


def test_runs_that_were_judged_on_different_images_are_not_compared(trainer: Trainer):
    name = define(seeds=[0])
    run_study(name)
    (path,) = Path(".trials").glob("fl_sl1-*/seed_0/test/detections/fl_sl1/seed_0/resampled.npz")
    stored = Resampled.load(path)
    Resampled("another", stored.images, stored.value_B, np.zeros((1, 1, 1))).save(path)
    with pytest.raises(InputError, match="GHM-C and what it is compared with were judged on different images"):
        run_study("--table", name)


def test_the_three_files_are_written_all_or_none_and_are_the_same_each_time(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
):
    name = define(seeds=[0])
    with monkeypatch.context() as patch:
        patch.delattr(figure, "draw")
        with pytest.raises(AttributeError):
            run_study(name)
    assert list(REPORTS.iterdir()) == []
    contents = []
    for _ in range(2):
        run_study("--table", name)
        contents.append({path.name: path.read_bytes() for path in REPORTS.iterdir()})
    assert sorted(contents[0]) == [f"{name}.json", f"{name}.md", f"{name}.png"]
    assert contents[0] == contents[1]


def test_many_curves_are_named_once_and_the_legend_lies_within_the_figure(trainer: Trainer):
    many = {f"GHM-C in {bins} unit regions": curve("ghmc_sl1", swept=False, ghmc__bins=bins) for bins in range(5, 23)}
    curves = {"FL": curve("fl_sl1", swept=False), **many}
    name = define(parameter=None, values=[], curves=curves, seeds=[0])
    run_study(name)
    drawn = figure.draw(gather(name, definition.load(name))).figure
    drawn.draw_without_rendering()
    (legend,), (ax,) = drawn.legends, drawn.axes
    assert legend.get_window_extent().x1 <= drawn.bbox.x1
    labels = ax.get_yticklabels()
    assert [tick.get_text() for tick in labels] == [*curves]
    boxes = [tick.get_window_extent() for tick in labels]
    assert all(lower.y1 <= upper.y0 for upper, lower in pairwise(boxes)), "no label lies on the next"
    assert min(box.x0 for box in boxes) >= drawn.bbox.x0
    assert not {text.get_text() for text in legend.get_texts()} & {*curves}
