"""Laws of what is said of a study: chosen on one split, reported on another, and nothing missing in silence."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from ghm.errors import InputError
from ghm.evaluation.bootstrap import Resampled
from ghm.study import __main__ as command
from ghm.study import figure
from tests.report.test_html import Elements
from tests.study.conftest import Trainer, curve

FOLDER = Path("reports/studies")
SEEDS = {"fl_sl1": (0.05, -0.05, 0.0), "ghmc_sl1": (-0.1, 0.1, 0.0)}  # what seeds 0, 1, 2 do to AP in percent


def summed_up(name: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[dict[str, Any], str]:
    """The JSON and the page of a study."""
    monkeypatch.setattr(sys, "argv", ["study", name, "--jobs", "1", *words])
    command.main()
    return json.loads((FOLDER / f"{name}.json").read_text()), (FOLDER / f"{name}.md").read_text()


def table(page: str) -> list[dict[str, str]]:
    """The first table of a page, by the heads of its columns."""
    rows = [line for line in page.splitlines() if line.startswith("|")]
    lines = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    head = lines[0]
    ends = [place for place, line in enumerate(lines) if line == head]
    return [dict(zip(head, line, strict=True)) for line in lines[2 : ends[1] if len(ends) > 1 else None]]


def by_bins(val: dict[int, float], test: dict[int, float], fl: float = 50.0):
    """AP by the bins of GHM-C, and that of Focal Loss."""

    def level(variant: str, params: dict[str, Any]) -> tuple[float, float]:
        bins, own = params["ghmc"]["bins"], SEEDS[variant][params["seeds"][0]]
        return (fl + own, fl + own) if variant == "fl_sl1" else (val[bins] + own, test[bins] + own)

    return level


def test_what_is_reported_is_what_val_chose_though_another_is_better_on_test(
    trainer: Trainer, define: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    trainer.level = by_bins(val={10: 52.0, 20: 51.0}, test={10: 51.0, 20: 55.0})
    found, page = summed_up(define(), monkeypatch)
    assert [(cell["value"], cell["chosen"]) for cell in found["cells"]] == [(None, False), (10, True), (20, False)]
    assert "`ghmc.bins` **10** is chosen on `val`, with 52.0 AP. On `test` it gives 51.0 AP, +1.0 (" in page
    assert [row["ghmc.bins"] for row in table(page)] == ["–", "**10**", "20"]  # noqa: RUF001
    assert table(page)[1]["AP on val, each seed"] == "52.0 (51.9, 52.1, 52.0)"
    assert found["cells"][1]["val"]["AP"]["seeds"] == {"0": 0.519, "1": 0.521, "2": 0.52}
    assert found["cells"][1]["test"]["AP"]["seeds"] == {"0": 0.509, "1": 0.511, "2": 0.51}


def test_verdicts_are_those_of_the_difference_on_the_same_images_and_seeds(
    trainer: Trainer, define: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    test = {5: 51.0, 10: 49.0, 20: 50.05}
    trainer.level = by_bins(val=test, test=test)
    found, page = summed_up(define(values=[5, 10, 20]), monkeypatch)
    words = [None, "better", "worse", "not distinguishable"]
    assert [cell["verdict"] for cell in found["cells"]] == words
    assert [row["verdict"] for row in table(page)[1:]] == words[1:]
    better = found["cells"][1]
    # images make AP uncertain by 2 %, and the difference, on the same images, by far less
    assert better["test"]["AP"]["low"] < found["cells"][0]["test"]["AP"]["high"]
    assert better["difference"]["AP"]["mean"] == pytest.approx(0.01)
    assert 0 < better["difference"]["AP"]["low"] < better["difference"]["AP"]["high"] < 0.02
    assert better["paired_seeds"] == [0, 1, 2]


def test_a_swept_reference_is_compared_at_the_same_value_and_nothing_is_chosen(
    trainer: Trainer, define: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    def level(variant: str, params: dict[str, Any]) -> tuple[float, float]:
        noise = params["data"]["label_noise"]
        ap = 60 - 50 * noise if variant == "fl_sl1" else 55 - 5 * noise
        ap += SEEDS[variant][params["seeds"][0]]
        return ap, ap

    trainer.level = level
    curves = {"FL": curve("fl_sl1"), "GHM-C": curve("ghmc_sl1")}
    name = define(parameter="data.label_noise", values=[0.0, 0.4], curves=curves)
    found, page = summed_up(name, monkeypatch)
    assert [(cell["curve"], cell["value"], cell["verdict"]) for cell in found["cells"]] == [
        ("FL", 0.0, None), ("FL", 0.4, None), ("GHM-C", 0.0, "worse"), ("GHM-C", 0.4, "better"),
    ]  # fmt: skip
    assert not any(cell["chosen"] for cell in found["cells"])
    assert "## Reported on test" in page
    assert "- GHM-C against FL: **worse** at 0; **better** at 0.4." in page


def test_missing_seeds_are_said_and_what_there_is_is_compared_with_the_same_seeds(
    trainer: Trainer, define: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    level = by_bins(val={10: 52.0, 20: 53.0}, test={10: 51.0, 20: 52.0})
    trainer.level = lambda variant, params: (
        "error: not finite"
        if (variant, params["ghmc"]["bins"], params["seeds"][0]) in {("ghmc_sl1", 20, 1), ("ghmc_sl1", 20, 2)}
        else level(variant, params)
    )
    name = define()
    with pytest.raises(InputError, match="2 of 9 training runs failed"):
        summed_up(name, monkeypatch)
    found, page = summed_up(name, monkeypatch, "--table")
    assert "**Not complete: 2 of 9 trainings are missing.**" in page
    assert "- clean, GHM-C at 20: 1 of 3 seeds (1, 2 not finished, its log ends: error: not finite)" in page
    assert [row["seeds"] for row in table(page)] == ["3 of 3", "3 of 3", "1 of 3"]
    short = found["cells"][2]
    assert (sorted(short["lacking"]), short["paired_seeds"]) == (["1", "2"], [0])
    assert table(page)[2]["verdict"] == "better (one seed)"
    assert "Where there is one seed" in page
    assert found["cells"][1]["chosen"], "a value that diverged under some seeds is not chosen for the others"
    assert "(2 of 6 trainings are missing; not from 20, with fewer seeds)" in page


def test_a_table_trains_nothing_and_says_what_was_never_trained(
    trainer: Trainer, define: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    define("small", values=[10], seeds=[0])
    name = define("large", values=[10, 20], seeds=[0, 1])
    with pytest.raises(InputError, match=r"studies/small\.yaml: none of its trainings is there"):
        summed_up("small", monkeypatch, "--table")
    summed_up("small", monkeypatch)
    trained = list(trainer.trained)
    found, page = summed_up(name, monkeypatch, "--table")
    assert trainer.trained == trained
    assert "- clean, GHM-C at 20: 0 of 2 seeds (0, 1 not trained)" in page
    assert found["cells"][2]["test"] == {metric: {"seeds": {}} for metric in ("AP", "AP50", "AP75")}
    assert found["cells"][2]["verdict"] is None


def test_where_all_trainings_fail_the_reason_is_said_and_no_file_is_written(
    trainer: Trainer, define: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    trainer.level = lambda variant, params: "error: no room"
    with pytest.raises(
        InputError, match=r"3 of 3 training runs failed: .*log\.txt: error: no room; .*none of its trainings"
    ):
        summed_up(define(seeds=[0]), monkeypatch)
    assert not FOLDER.exists()


def test_trainings_with_other_code_are_said(
    trainer: Trainer, define: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    name = define(seeds=[0])
    summed_up(name, monkeypatch)
    monkeypatch.setattr("ghm.study.trials.fingerprint.code", lambda _losses: {"head.py": "another"})
    _, page = summed_up(name, monkeypatch, "--table")
    assert "**3 of them were made with other training code than this.**" in page


def test_published_figures_stand_beside_ours_and_a_nan_is_a_word(
    trainer: Trainer, define: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    published = [{"dataset": "COCO", "source": "a paper", "ap": {"GHM-C": {10: 34.6, 20: "NaN"}}}]
    found, page = summed_up(define(published=published, seeds=[0]), monkeypatch)
    assert [row["published AP, COCO"] for row in table(page)] == ["–", "34.6", "NaN"]  # noqa: RUF001
    assert [cell["published"]["COCO"] for cell in found["cells"]] == [None, 34.6, "NaN"]
    assert "levels cannot be compared" in page
    assert "- COCO: a paper" in page


def test_curves_without_a_parameter_are_compared_and_none_is_chosen(
    trainer: Trainer, define: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    curves = {"A": curve("fl_sl1", swept=False), "B": curve("ghmc_sl1", swept=False)}
    published = [{"dataset": "COCO", "source": "a paper", "ap": {"A": 35.6, "B": "NaN"}}]
    trainer.level = by_bins(val={30: 52.0}, test={30: 48.0})
    found, page = summed_up(define(parameter=None, values=[], curves=curves, published=published), monkeypatch)
    assert [(cell["chosen"], cell["verdict"]) for cell in found["cells"]] == [(False, None), (False, "worse")]
    assert "- B gives 48.0 AP, -2.0 (" in page
    assert "Chosen" not in page


def test_a_data_set_with_one_split_warns_that_it_chose_by_what_it_reports(
    trainer: Trainer, define: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    Path("data/coco.json").write_text(Path("data/digits.json").read_text().replace("digits", "coco"))
    text = (
        Path("params.yaml").read_text().replace("name: digits ", "name: coco ").replace("split: test ", "split: val ")
    )
    Path("params.yaml").write_text(text)
    trainer.level = lambda variant, params: (50.0,)  # type: ignore[return-value, assignment]
    found, page = summed_up(define(seeds=[0]), monkeypatch)
    assert found["chosen_on"] == found["reported_on"] == "val"
    assert "## Chosen and reported on val" in page
    assert "its AP and its difference lean upward" in page


def test_trainings_that_were_judged_on_different_images_are_not_compared(
    trainer: Trainer, define: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    name = define(seeds=[0])
    summed_up(name, monkeypatch)
    (path,) = Path(".trials").glob("fl_sl1-*/seed_0/detections/test/seed_0/resampled.npz")
    own = Resampled.load(path)
    Resampled("another", own.images, own.value_B, np.zeros((1, 1, 1))).save(path)
    with pytest.raises(InputError, match="GHM-C and what it is compared with were judged on different images"):
        summed_up(name, monkeypatch, "--table")


def test_the_three_files_are_written_all_or_none(
    trainer: Trainer, define: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    name = define(seeds=[0])

    def fail(found: object) -> None:
        raise RuntimeError("no font")

    with monkeypatch.context() as patch:
        patch.setattr(figure, "draw", fail)
        with pytest.raises(RuntimeError, match="no font"):
            summed_up(name, monkeypatch)
    assert list(FOLDER.iterdir()) == []
    _, page = summed_up(name, monkeypatch)
    assert sorted(path.name for path in FOLDER.iterdir()) == [f"{name}.json", f"{name}.md", f"{name}.png"]
    assert f"]({name}.png)" in page
    with Image.open(FOLDER / f"{name}.png") as picture:
        assert picture.width == 1440


def test_equal_trainings_give_equal_files(
    trainer: Trainer, define: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    name = define(seeds=[0])
    contents = []
    for _ in range(2):
        summed_up(name, monkeypatch)
        contents.append({path.name: path.read_bytes() for path in FOLDER.iterdir()})
    assert contents[0] == contents[1]


def test_numbers_stand_in_their_columns_whatever_a_curve_is_called(
    trainer: Trainer, define: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    first, second = "F|*L* $a$ $b$", "<i>_c\nd"
    curves = {first: curve("fl_sl1", swept=False), second: curve("ghmc_sl1")}
    published = [{"dataset": "C|D $e$ $f$", "source": "a paper", "ap": {second: {10: 34.6, 20: "N|N"}}}]
    trainer.level = by_bins(val={10: 52.0, 20: 51.0}, test={10: 51.0, 20: 55.0})
    name = define(curves=curves, published=published, conditions={"x|y": {}}, seeds=[0])
    _, page = summed_up(name, monkeypatch)
    shown = Elements(MarkdownIt("commonmark").enable("table").render(page)).cells
    assert shown[:7] == [
        "curve", "ghmc.bins", "AP on val, each seed", "AP on test, 95 %", "minus F|*L* $a$ $b$", "verdict",
        "published AP, C|D $e$ $f$",
    ]  # fmt: skip
    rows = [shown[place : place + 7] for place in range(7, len(shown), 7)]
    assert [(row[0], row[1], row[2], row[3][:4], row[6]) for row in rows] == [
        (first, "–", "50.0", "50.0", "–"),  # noqa: RUF001
        ("<i>_c d", "10", "51.9", "50.9", "34.6"),
        ("<i>_c d", "20", "50.9", "54.9", "N|N"),
    ]
