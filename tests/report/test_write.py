"""Laws of the report: its numbers are those of the runs, and it is written whole."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from ghm import report
from ghm.errors import InputError
from ghm.evaluation import bootstrap
from ghm.evaluation.bootstrap import Resampled
from ghm.params import Params
from ghm.report import comparison, metric_figures, tables, words
from ghm.report.inputs import read
from tests.report.artificial_runs import change, fill

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")


class Written(NamedTuple):
    """A report on artificial runs."""

    root: Path
    params: Params

    @property
    def page(self) -> str:
        return (self.root / "reports" / "ap_table.md").read_text(encoding="utf-8")

    def rows(self, heading: str) -> dict[str, list[str]]:
        """Return the first table below a heading: name of the row -> its cells."""
        below = self.page.split(f"## {heading}")[1].split("\n## ")[0]
        lines = [line.strip("| ").split("|") for line in below.splitlines() if line.startswith("|")]
        return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def write(root: Path, **wanted: Any) -> Written:
    params = fill(root, **wanted)
    report.write(params, root)
    return Written(root, params)


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Three variants, one seed."""
    return write(tmp_path_factory.mktemp("default"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Eight variants, two seeds, eighty classes."""
    return write(tmp_path_factory.mktemp("large"), variants=8, seeds=2, classes=80)


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """One variant that found nothing."""
    return write(tmp_path_factory.mktemp("blind"), variants=1, detect=False)


@pytest.fixture(params=["default", "large", "blind"])
def any_report(request: pytest.FixtureRequest) -> Written:
    return request.getfixturevalue(request.param)


def metrics(root: Path, variant: str) -> dict[str, Any]:
    return json.loads((root / "detections" / variant / "metrics.json").read_text())


def test_main_table_has_the_metrics_in_percent(any_report: Written) -> None:
    rows = any_report.rows("Result")
    for name in any_report.params.variants:
        values = metrics(any_report.root, name)
        shown = [cell.split(" ±")[0] for cell in rows[name]]
        wanted = {**values, "APl": None}
        expected = ["–" if wanted[key] is None else f"{100 * wanted[key]:.1f}" for key in COLUMNS]  # noqa: RUF001
        assert shown[: len(COLUMNS)] == expected


def test_the_verdict_is_that_of_the_interval_beside_it(any_report: Written) -> None:
    for name in list(any_report.params.variants)[1:]:
        row = any_report.rows("Result")[name]
        low, high = (float(text) for text in re.findall(r"[+-][\d.]+(?=, |\])", row[-2]))
        # Rounded to a digit, an end at 0.0 may lie on either side.
        words = {"better": low >= 0, "worse": high <= 0, "not distinguishable": low <= 0 <= high}
        assert words[row[-1]], (name, row)
        assert f"`{name}` is **{row[-1]}**" in any_report.page


def test_intervals_are_those_of_the_resampled_metrics(large: Written) -> None:
    table = pd.read_csv(large.root / "reports/plots/intervals.csv").set_index(["variant", "metric"])
    folders = {name: large.root / "detections" / name for name in ("ghmc_sl1", "fl_sl1")}
    own, other = ([Resampled.load(folder / f"seed_{n}/resampled.npz") for n in (0, 1)] for folder in folders.values())
    for metric in ("AP", "AP75", "AP_class 7"):
        own_SB, other_SB = (np.stack([seed.value_B[metric] for seed in seeds]) for seeds in (own, other))
        expected = bootstrap.difference(own_SB, other_SB, 8)
        assert expected
        row = table.loc[("ghmc_sl1", metric)]
        ends = [row["difference"], row["difference_low"], row["difference_high"]]
        np.testing.assert_allclose(ends, [expected.estimate, expected.low, expected.high], rtol=1e-4)
        assert row["verdict"] == expected.verdict


def test_a_single_variant_has_nothing_to_be_compared_with(blind: Written) -> None:
    assert "There is nothing to compare `fl_sl1` with" in blind.page
    assert "differences.png" not in blind.page


def test_the_first_table_of_the_page_is_the_main_one_which_make_prints(any_report: Written) -> None:
    first = next(line for line in any_report.page.splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in first.strip("|").split("|")][:2] == ["variant", "AP"]


def test_the_spread_over_seeds_is_their_standard_deviation(default: Written, large: Written) -> None:
    ap = [metrics(large.root, f"ghmc_sl1/seed_{seed}")["AP"] for seed in large.params.seeds]
    assert large.rows("Result")["ghmc_sl1"][0].endswith(f" ± {100 * np.std(ap, ddof=1):.1f}")
    assert "other images and other training runs (2 seeds)" in large.page
    assert "±" not in default.page
    assert "**One seed**" in default.page


def test_published_figures_stand_apart_and_only_beside_their_own_losses(large: Written) -> None:
    rows = large.rows("Published figures")
    assert rows["fl_sl1"] == ["35.6", "baseline"]
    assert rows["ghmc_sl1"] == ["35.8", "+0.2"]
    assert rows["ghmc_ghmr"] == ["37.0", "+1.4"]
    assert rows["ghmc_smooth"] == ["–", "–"], "an option is on"  # noqa: RUF001
    assert rows["extra_0"] == ["35.6", "baseline"], "whatever a variant is called"
    assert "35.6" not in str(large.rows("Result"))


def test_every_class_has_a_row_with_its_ap(any_report: Written) -> None:
    rows = any_report.rows("AP of each class")
    manifest = json.loads((any_report.root / "data" / "digits.json").read_text())
    for name in manifest["classes"]:
        value = metrics(any_report.root, "fl_sl1")["classes"][name]
        assert rows[name][1].split(" ±")[0] == f"{100 * value:.1f}"


def test_the_baseline_is_compared_with_nothing(any_report: Written) -> None:
    table = pd.read_csv(any_report.root / "reports/plots/intervals.csv")
    own = table.query("variant == 'fl_sl1'")
    assert set(own["verdict"]) == {"baseline"}
    assert [own[name].count() for name in ("difference", "difference_low", "difference_high")] == [0, 0, 0]


def test_a_class_without_boxes_is_a_dash_and_no_difference(tmp_path: Path) -> None:
    params = fill(tmp_path, variants=2, images=1)  # its only image is empty: the truth says so of no class
    for variant in params.variants:
        folder = tmp_path / "detections" / variant
        for path in (folder / "metrics.json", folder / "seed_0" / "metrics.json"):
            change(path, classes=dict.fromkeys("012456789", 0.5))
        stored = Resampled.load(folder / "seed_0" / "resampled.npz")
        stored.value_B["AP_3"][:] = -1
        stored.save(folder / "seed_0" / "resampled.npz")
    results = read(params, tmp_path)
    assert re.search(r"^\| 3 +\| +0 \| +– \| +– \|$", tables.per_class(results, params), re.MULTILINE)  # noqa: RUF001
    table = comparison.table(results, params)
    assert set(table["metric"]) == {"AP", "AP50", "AP75", *(f"AP_{number}" for number in range(10))} - {"AP_3"}
    plot = metric_figures.per_class(table, results, params)
    labels = [label.get_text() for label in plot.figure.axes[0].get_yticklabels()]
    assert labels == [str(n) for n in range(10) if n != 3]
    assert plot.caption.endswith("Not shown: 1 of 10 classes, of which the split has no box.")


def test_images_that_were_left_out_are_counted_and_named(tmp_path: Path) -> None:
    params = fill(tmp_path, variants=2)
    assert words.left_out(read(params, tmp_path), "test") == []
    change(tmp_path / "runs/ghmc_sl1/seed_0/context.json", unreadable_images=2)
    change(tmp_path / "detections/ghmc_sl1/metrics.json", unreadable_images=["b.png", "a_.png"])
    assert words.left_out(read(params, tmp_path), "test") == [
        "- **Left out**, because they cannot be read: 2 images of `train` and 2 images of `test` (a\\_.png, b.png). "
        "One of `test` counts as an image in which nothing was found."
    ]
    splits = json.loads((tmp_path / "data/digits.json").read_text())["splits"]
    splits["train"]["unreadable"] = [f"{number}.png" for number in range(7)]
    change(tmp_path / "data/digits.json", splits=splits)
    results = read(params, tmp_path)
    (line,) = words.left_out(results, "test")
    assert line in words.setting(results, params)
    assert "Found by its check: 1,200 crowd boxes in `train`." in words.setting(results, params)
    assert "7 images of `train` (0.png, 1.png, 2.png, 3.png, 4.png, and 2 more) and" in line


def test_ap_after_an_epoch_without_boxes_to_measure_on_is_not_drawn(tmp_path: Path) -> None:
    params = fill(tmp_path, variants=1)
    path = tmp_path / "runs/fl_sl1/seed_0/validation.csv"
    pd.DataFrame({"epoch": [1, 2], "AP": [-1.0, -1.0]}).to_csv(path, index=False)
    assert metric_figures.validation_ap(read(params, tmp_path), params) is None


def test_every_figure_is_on_the_page_with_alt_text_and_the_other_way_round(any_report: Written) -> None:
    shown = dict(re.findall(r"!\[(.{20,}?)\]\(figures/(\w+\.(?:png|jpg))\)", any_report.page))
    written = {path.name for path in (any_report.root / "reports" / "figures").iterdir()}
    assert set(shown.values()) == written
    assert {"gradient_norms.png", "errors.png", "precision_recall.png", "gallery.jpg", "loss.png"} <= written


def test_there_is_a_figure_for_everything_that_there_is_to_draw(large: Written, blind: Written) -> None:
    written = [{path.stem for path in (each.root / "reports" / "figures").iterdir()} for each in (large, blind)]
    assert len(written[0]) == 12
    # One variant, with Focal Loss, that found nothing.
    assert written[0] - written[1] == {"differences", "density", "per_class", "disagreements"}


def test_precision_recall_data_are_means_over_seeds_inside_their_intervals(large: Written) -> None:
    seeds = [Resampled.load(large.root / f"detections/fl_sl1/seed_{seed}/resampled.npz") for seed in (0, 1)]
    for place, iou in enumerate((0.5, 0.75)):
        table = pd.read_csv(large.root / "reports" / "plots" / f"precision_recall_{100 * iou:.0f}.csv")
        own = table[table["variant"] == "fl_sl1"]
        expected = np.mean([seed.curve_BUR[0, place] for seed in seeds], axis=0)
        np.testing.assert_allclose(own["precision"], expected, atol=1e-5)
        assert (own["low"] <= own["precision"]).all()
        assert (own["precision"] <= own["high"]).all()


def test_writing_twice_gives_the_same_bytes_and_removes_old_figures(default: Written) -> None:
    reports = default.root / "reports"
    before = {path.relative_to(reports): path.read_bytes() for path in reports.rglob("*") if path.is_file()}
    (reports / "figures" / "old.png").touch()
    report.write(default.params, default.root)
    after = {path.relative_to(reports): path.read_bytes() for path in reports.rglob("*") if path.is_file()}
    assert before == after
    assert not list(default.root.glob(".report-*"))


@pytest.mark.parametrize(
    "name",
    [
        "detections/ghmc_sl1/metrics.json",
        "detections/ghmc_sl1/seed_0/metrics.json",
        "detections/ghmc_sl1/seed_0/errors.json",
        "detections/ghmc_sl1/seed_0/resampled.npz",
        "detections/ghmc_sl1/seed_0/detections.json",
        "detections/ghmc_sl1/seed_0/matches.npz",
        "runs/ghmc_sl1/seed_0/log.csv",
        "runs/ghmc_sl1/seed_0/gradient_norms.csv",
        "runs/ghmc_sl1/seed_0/context.json",
        "data/digits.json",
        "data/digits/annotations/instances_test.json",
    ],
)
def test_a_missing_file_is_named_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    params = fill(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{re.escape(name)} is missing: run `dvc repro`"):
        report.write(params, tmp_path)
    assert not (tmp_path / "reports").exists()


def test_a_missing_image_is_named_and_the_old_report_stays(tmp_path: Path) -> None:
    params = fill(tmp_path)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "ap_table.md").write_text("old")
    (tmp_path / "data/digits/test/0001.png").unlink()
    with pytest.raises(InputError, match=r"data/digits/test/0001\.png is missing"):
        report.write(params, tmp_path)
    assert [path.name for path in (tmp_path / "reports").rglob("*")] == ["ap_table.md"]
    assert (tmp_path / "reports" / "ap_table.md").read_text() == "old"
