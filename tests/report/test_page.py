"""Laws of the report: its numbers are those of the runs, and it is written whole."""

import json
import re
from dataclasses import replace
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
from ghm.report import comparison, tables, words
from ghm.report.inputs import read
from stages import publish
from tests.report.conftest import cells, change, fill

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
INSPECTED = {"data.md", "data", "batch.jpg"}  # what the stage `inspect` wrote
BUILT = Path("reports/built")


class Written(NamedTuple):
    """A report on artificial runs."""

    root: Path
    params: Params

    @property
    def page(self) -> str:
        return (self.root / BUILT / "ap_table.md").read_text(encoding="utf-8")

    def rows(self, heading: str) -> dict[str, list[str]]:
        """Return the first table below a heading: name of the row -> its cells."""
        below = re.split(r"\n##+ ", self.page.split(f"## {heading}")[1])[0]
        lines = [line.strip("| ").split("|") for line in below.splitlines() if line.startswith("|")]
        return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def write(root: Path, **wanted: Any) -> Written:
    params = fill(root, **wanted)
    report.write(params, root)
    return Written(root, params)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Four variants, two seeds, thirty classes."""
    return write(tmp_path_factory.mktemp("large"), variants=4, seeds=2, classes=30)


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """One variant that found nothing, and one seed."""
    return write(tmp_path_factory.mktemp("blind"), variants=1, detect=False)


@pytest.fixture(params=["large", "blind"])
def any_report(request: pytest.FixtureRequest) -> Written:
    return request.getfixturevalue(request.param)


def metrics(root: Path, variant: str) -> dict[str, Any]:
    return json.loads((root / "detections" / variant / "metrics.json").read_text())


def test_tables_have_the_metrics_in_percent_and_the_main_one_which_make_prints_comes_first(any_report: Written) -> None:
    rows, of_classes = any_report.rows("Result"), any_report.rows("AP of each class")
    first = next(line for line in any_report.page.splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in first.strip("|").split("|")][1:] == rows["variant"]
    for number, name in enumerate(any_report.params.variants, start=1):
        values = metrics(any_report.root, name)
        shown = [cell.split(" ±")[0] for cell in rows[name]]
        ap = [metrics(any_report.root, f"{name}/seed_{seed}")["AP"] for seed in any_report.params.seeds]
        assert len(ap) == 1 or rows[name][0].endswith(f" ± {100 * np.std(ap, ddof=1):.1f}")
        wanted = {**values, "APl": None}
        expected = ["–" if wanted[key] is None else f"{100 * wanted[key]:.1f}" for key in COLUMNS]  # noqa: RUF001
        assert shown[: len(COLUMNS)] == expected
        for label, ap in values["classes"].items():
            assert of_classes[label][number].split(" ±")[0] == f"{100 * ap:.1f}"


def test_what_is_found_at_the_operating_point_is_the_mean_over_seeds_of_what_the_evaluation_has(large: Written) -> None:
    at_point, of_class = large.rows("Found, missed and confused"), large.rows("Precision / recall / F1 of each class")
    by_density = large.rows("AP by the number of boxes in an image")

    def mean(values: list[float]) -> str:
        return f"{100 * np.mean(values):.1f}"

    for number, name in enumerate(large.params.variants):
        seeds = [json.loads((large.root / f"detections/{name}/seed_{n}/outcome.json").read_text()) for n in (0, 1)]
        score, *figures = at_point[name]
        assert score == f"{np.mean([seed['score'] for seed in seeds]):.2f}"
        keys = ("precision", "recall", "f1")
        assert [cell.split(" ±")[0] for cell in figures] == [mean([seed[key] for seed in seeds]) for key in keys]
        for label in json.loads((large.root / "data/digits.json").read_text())["classes"]:
            own = [seed["classes"][label] for seed in seeds]
            known = [[one[key] for one in own if key in one] for key in keys]
            shown = of_class[label][1 + number]
            assert shown == " / ".join(mean(values) if values else "–" for values in known)  # noqa: RUF001
        expected = [mean([seed["density"][group]["AP"] for seed in seeds]) for group in range(2)]
        assert [cell.split(" ±")[0] for cell in by_density[name]] == expected
    assert by_density["variant"] == ["1 (2 images)", "2 to 4 (4 images)"]


def test_intervals_are_those_of_the_resampled_metrics(large: Written) -> None:
    table = pd.read_csv(large.root / BUILT / "plots/intervals.csv").set_index(["variant", "metric"])
    folders = {name: large.root / "detections" / name for name in ("ghmc_sl1", "fl_sl1")}
    own, other = ([Resampled.load(folder / f"seed_{n}/resampled.npz") for n in (0, 1)] for folder in folders.values())
    for metric in ("AP", "AP75", "AP_class 7"):
        own_SB, other_SB = (np.stack([seed.value_B[metric] for seed in seeds]) for seeds in (own, other))
        expected = bootstrap.difference(own_SB, other_SB, 8)
        assert expected
        row = table.loc[("ghmc_sl1", metric)]
        ends = [row["difference"], row["difference_low"], row["difference_high"]]
        np.testing.assert_allclose(ends, [expected.estimate, expected.low, expected.high], rtol=1e-4)
        assert row["comparisons"] == (90 if metric.startswith("AP_") else 3)
    assert f"`ghmc_sl1` is **{large.rows('Result')['ghmc_sl1'][-2]}**" in large.page


def test_verdicts_are_corrected_for_the_number_of_comparisons_and_the_page_says_so(large: Written) -> None:
    found = read(large.params, large.root)
    first, *others = large.params.variants
    compared = {key: minus for key, (_, minus) in comparison.compare(found).items() if minus}
    for metric in ("AP", "AP50", "AP75"):
        alone = {name: comparison.difference(found.resampled[name], found.resampled[first], metric) for name in others}
        together = bootstrap.together({name: minus for name, minus in alone.items() if minus})
        assert together == {name: compared[name, metric] for name in others}
    of_classes = {key: minus for key, minus in compared.items() if key[1] not in bootstrap.METRICS}
    assert bootstrap.together(of_classes) == of_classes
    assert "**3 comparisons**: the verdicts are corrected for them." in large.page
    assert "also after it was widened for the number of comparisons" in large.page
    smallest = sorted(compared[name, "AP"].detectable or 0 for name in others)
    ends = " to ".join(dict.fromkeys(tables.detectable(least) for least in (smallest[0], smallest[-1])))
    assert f"a true difference of {ends} AP gets its verdict in about 80 of 100 cases" in large.page
    for name in others:
        assert large.rows("Result")[name][-1] == tables.detectable(compared[name, "AP"].detectable)


def test_an_interval_that_leaves_out_0_for_itself_alone_is_explained() -> None:
    error = bootstrap.Error(0.01, 0.0, 800, 1)
    alone = bootstrap.together({"": bootstrap.Difference(0.021, 0.0014, 0.0406, error)})[""]
    assert words.judged(alone, "FL") == "is **better** than FL: +2.1 AP, 95 % interval +0.1 to +4.1."
    assert "comparisons" not in "".join(words.seen([alone])) + words.reading_intervals("FL", 1)
    among = bootstrap.together(dict.fromkeys("abc", alone))["a"]
    assert words.judged(among, "FL") == (
        "is **not distinguishable** from FL: +2.1 AP, 95 % interval +0.1 to +4.1, which leaves out 0, but not clearly "
        "enough among 3 comparisons."
    )
    assert "a true difference of 3.2 AP gets" in words.seen([among])[0]
    sure = bootstrap.Difference(0.021, 0.021, 0.021, bootstrap.Error(0.0, 0.0, 800, 1))
    assert words.judged(sure, "FL") == "is **not distinguishable** from FL: +2.1 AP, 95 % interval +2.1 to +2.1."
    assert words.seen([sure]) == []


def test_the_baseline_and_a_single_variant_are_compared_with_nothing(large: Written, blind: Written) -> None:
    baseline = pd.read_csv(large.root / BUILT / "plots/intervals.csv").query("variant == 'fl_sl1'")
    assert set(baseline["verdict"]) == {"baseline"}
    assert np.isnan(baseline[["difference", "difference_low", "difference_high"]].to_numpy(float)).all()
    assert "There is nothing to compare `fl_sl1` with" in blind.page
    assert "comparisons" not in blind.page and "could be seen" not in blind.page
    assert "other images and other training runs (2 seeds)" in large.page


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
    measured = {metric for _, metric in comparison.compare(results)}
    assert measured == {"AP", "AP50", "AP75", *(f"AP_{number}" for number in range(10))} - {"AP_3"}


def test_training_boxes_that_are_wrong_on_purpose_are_said_so(large: Written) -> None:
    results, data = read(large.params, large.root), large.params.data
    assert "of the training boxes" not in large.page
    noisy = replace(large.params, data=replace(data, label_noise=0.3, box_noise=0.2))
    text = words.setting(results, noisy)
    assert "**30% of the training boxes have a wrong class.** **20% of the training boxes have moved edges.**" in text


def test_images_that_were_left_out_are_counted_and_the_first_five_named(tmp_path: Path) -> None:
    params = fill(tmp_path, variants=2)
    assert "Left out" not in words.setting(read(params, tmp_path), params)
    change(tmp_path / "runs/ghmc_sl1/seed_0/context.json", unreadable_images=1)
    change(tmp_path / "detections/ghmc_sl1/metrics.json", unreadable_images=["b.png", "a_.png"])
    line = "- **Left out**, because they cannot be read: 1 image of `train` and 2 images of `test` (a\\_.png, b.png)."
    assert line in words.setting(read(params, tmp_path), params)
    splits = json.loads((tmp_path / "data/digits.json").read_text())["splits"]
    splits["train"]["unreadable"] = [f"{number}.png" for number in range(7)]
    change(tmp_path / "data/digits.json", splits=splits)
    line = "7 images of `train` (0.png, 1.png, 2.png, 3.png, 4.png and 2 more) and 2 images of `test`"
    assert line in words.setting(read(params, tmp_path), params)


def test_the_weight_of_the_rarest_examples_is_said(large: Written) -> None:
    counts = pd.concat(pd.read_csv(large.root / f"runs/ghmc_sl1/seed_{seed}/gradient_norms.csv") for seed in (0, 1))
    last = np.array(counts.query("epoch == 2 and kind == 'cls'").groupby("low")["count"].sum())
    fewest = last.reshape(30, 4).sum(axis=1).min()
    assert f"`ghmc_sl1` {fewest} of weight {last.sum() / fewest / 30:,.0f}" in large.page


def test_every_figure_is_on_the_page_with_alt_text_and_the_other_way_round(large: Written, blind: Written) -> None:
    stems = []
    for written in (large, blind):
        shown = dict(re.findall(r"!\[(.{20,}?)\]\(figures/(\w+\.(?:png|jpg))\)", written.page))
        assert set(shown.values()) == {path.name for path in (written.root / BUILT / "figures").iterdir()}
        stems.append({Path(name).stem for name in shown.values()})
    assert len(stems[0]) == 9
    assert stems[0] - stems[1] == {"differences", "density"}  # one variant, with Focal Loss


def test_the_html_page_has_the_tables_and_figures_and_asks_for_no_other_file(large: Written) -> None:
    text = (large.root / BUILT / "index.html").read_text(encoding="utf-8")
    sources = re.findall(r'\bsrc="([^"]*)"', text)
    pictures = [*(large.root / BUILT / "figures").iterdir(), *(large.root / "reports" / "data").iterdir()]
    assert len(sources) == len(pictures)
    assert "<h3>What the network sees</h3>" in text
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"<link|url\(|@import|fetch\(", text)
    links = re.findall(r'\bhref="([^"]*)"', text)
    assert {link for link in links if not link.startswith("https://")} == {"#data"} and 'id="data"' in text
    lines = [line for line in large.page.splitlines() if line.startswith("|") and not line.startswith("|:")]
    assert cells(text) == [cell.strip() for line in lines for cell in line.strip("|").split("|")]


def test_writing_twice_gives_the_same_bytes_and_publishing_removes_old_figures(
    blind: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = blind.root / "reports"
    before = {path.relative_to(reports): path.read_bytes() for path in reports.rglob("*") if path.is_file()}
    report.write(blind.params, blind.root)
    after = {path.relative_to(reports): path.read_bytes() for path in reports.rglob("*") if path.is_file()}
    assert before == after
    (reports / "studies").mkdir()
    (reports / "figures").mkdir()
    (reports / "figures" / "old.png").touch()
    monkeypatch.chdir(blind.root)
    publish.main()
    built = {path.name for path in (reports / "built").rglob("*")}
    assert {path.name for path in reports.rglob("*")} == {*built, "built", "studies", *INSPECTED}


@pytest.mark.parametrize(
    "name",
    [
        "detections/ghmc_sl1/seed_0/resampled.npz",
        "detections/ghmc_sl1/seed_0/matches.npz",
        "runs/ghmc_sl1/seed_0/log.csv",
        "runs/ghmc_sl1/seed_0/context.json",
        "data/digits.json",
        "data/digits/test/0001.png",
        "reports/data.md",
    ],
)
def test_a_missing_file_is_named_and_the_old_report_stays(tmp_path: Path, name: str) -> None:
    params = fill(tmp_path)
    (tmp_path / BUILT).mkdir(parents=True)
    (tmp_path / BUILT / "ap_table.md").write_text("old")
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{re.escape(name)} is missing: run `dvc repro`"):
        report.write(params, tmp_path)
    assert {path.name for path in (tmp_path / "reports").rglob("*")} <= {"built", "ap_table.md", *INSPECTED}
