"""Laws of the evaluation of trained variants: what is written is what pycocotools says of the stored detections."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ghm import data, fingerprint, params, training
from ghm.errors import InputError
from ghm.evaluation import bootstrap, errors, matches
from ghm.evaluation import run as evaluation
from ghm.evaluation.bootstrap import Resampled
from ghm.evaluation.judge import SUMMARY, judge, voc_ap50
from ghm.params import Params
from tests.evaluation.cases import Case, pycocotools

VARIANT = "ghmc_ghmr"
RUNS, OUT = Path("runs") / VARIANT, Path("detections") / VARIANT
SEEDS = (0, 3)
EVERY = {"classes", "intervals", "unreadable_images"}
FILES = ["detections.json", "errors.json", "matches.npz", "metrics.json", "resampled.npz"]


@pytest.fixture
def given(workspace: Path) -> Params:
    """The tiny parameters with two seeds."""
    return replace(params.load(), seeds=SEEDS)


def measured_on(given: Params) -> str:
    return fingerprint.measured_data(data.read_manifest(given)["splits"][given.evaluate.split])


def annotations(given: Params) -> Path:
    split = data.read_manifest(given)["splits"][given.evaluate.split]
    return Path("data") / given.data.name / split["annotations"]


@pytest.fixture
def detecting(given: Params, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Instead of a network: most true boxes, some pixels aside, and an image left out of the name of the seed."""

    def detect(params: Params, variant: str, seed: int, model: Path, split: str) -> tuple[list[Any], list[str]]:
        assert (variant, model, split) == (VARIANT, RUNS / f"seed_{seed}" / "model.pth", "test")
        rng = np.random.default_rng(seed)
        boxes = json.loads(annotations(params).read_text())["annotations"]
        found = [
            {
                "image_id": box["image_id"],
                "category_id": box["category_id"],
                "bbox": (np.array(box["bbox"]) + rng.normal(0, 2, 4)).clip(1).tolist(),
                "score": float(rng.uniform()),
            }
            for box in boxes
            if rng.uniform() < 0.8
        ]
        return found, [f"{seed}.png"]

    monkeypatch.setattr(evaluation, "detect", detect)
    return given


def stored(given: Params, seed: int) -> Case:
    found = json.loads((OUT / f"seed_{seed}" / "detections.json").read_text())
    return Case(json.loads(annotations(given).read_text()), found)


def said_of(given: Params) -> dict[int, dict[str, float]]:
    """What pycocotools says of the stored detections of each seed, as far as it is defined."""
    stats = {seed: pycocotools(stored(given, seed)).stats for seed in SEEDS}
    return {seed: {name: stats[seed][n] for name, n in SUMMARY.items() if stats[seed][n] > -1} for seed in SEEDS}


def assert_consistent(given: Params, metrics: dict[str, Any]) -> None:
    """Each seed has its files, and all that they and `metrics` say follows from the detections."""
    assert sorted(path.name for path in OUT.iterdir()) == ["metrics.json", *(f"seed_{seed}" for seed in SEEDS)]
    assert json.loads((OUT / "metrics.json").read_text()) == metrics
    each = said_of(given)
    resampled = []
    for seed in SEEDS:
        place = OUT / f"seed_{seed}"
        assert sorted(path.name for path in place.iterdir()) == FILES
        own = json.loads((place / "metrics.json").read_text())
        figures = {name: round(value, 4) for name, value in each[seed].items()}
        assert {name: own[name] for name in own if name in SUMMARY} == figures
        assert own.keys() == {*figures, *EVERY}
        case = stored(given, seed)
        judged = judge(annotations(given), place / "detections.json")
        costs = errors.analyse(case.truth, case.found, judged.matches)
        assert (matches.read(place) > 0).sum() == judged.matches.hit_TD[0].sum()
        assert json.loads((place / "errors.json").read_text()) == {
            name: round(value, 4) for name, value in costs.items()
        }
        resampled.append(Resampled.load(place / "resampled.npz"))
        assert resampled[-1].measured_on == measured_on(given)
        assert resampled[-1].value_B["AP"][0] == pytest.approx(each[seed]["AP"], abs=1e-12)
    for name in each[SEEDS[0]]:
        assert metrics[name] == round(float(np.mean([each[seed][name] for seed in SEEDS])), 4)
    for name in bootstrap.METRICS:
        found = bootstrap.interval(np.stack([own.value_B[name] for own in resampled]), resampled[0].images)
        assert found and metrics["intervals"][name] == [round(found.low, 4), round(found.high, 4)]
        assert metrics["intervals"][name][0] <= metrics[name] <= metrics["intervals"][name][1]
    assert metrics["intervals"].keys() == set(bootstrap.METRICS)
    # A name of a class is a key beside other classes and beside nothing else.
    for name, ap in metrics["classes"].items():
        assert ap == pytest.approx(float(np.mean([own.value_B[f"AP_{name}"][0] for own in resampled])), abs=5.1e-5)
    assert "-1.0" not in (OUT / "metrics.json").read_text(), "what is not defined is absent"


def test_what_is_written_and_returned_follows_from_the_detections_of_each_seed(detecting: Params):
    metrics = evaluation.evaluate(detecting, VARIANT, RUNS, OUT)
    assert_consistent(detecting, metrics)
    each = said_of(detecting)
    assert each[0]["AP"] != each[3]["AP"]
    assert 0.1 < metrics["AP"] < 0.9
    low, high = metrics["intervals"]["AP"]
    assert low < metrics["AP"] < high


def test_images_that_any_seed_left_out_are_named(detecting: Params):
    assert evaluation.evaluate(detecting, VARIANT, RUNS, OUT)["unreadable_images"] == ["0.png", "3.png"]
    single = [json.loads((OUT / f"seed_{seed}" / "metrics.json").read_text())["unreadable_images"] for seed in SEEDS]
    assert single == [["0.png"], ["3.png"]]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (None, "there is none at all"),
        ({"iscrowd": 1}, "are crowds or have no possible area"),
        ({"area": -1}, "are crowds or have no possible area"),
    ],
)
def test_a_split_without_a_box_that_counts_is_refused_before_it_is_detected_on(
    detecting: Params, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any] | None, why: str
):
    monkeypatch.setattr(data, "ensure", lambda _: None)
    path = annotations(detecting)
    content = json.loads(path.read_text())
    boxes = [box | change for box in content["annotations"]] if change else []
    copy = Path("annotations.json")
    copy.write_text(json.dumps({**content, "annotations": boxes}))
    manifest = data.read_manifest(detecting)
    manifest["splits"]["test"]["annotations"] = str(copy.resolve())
    monkeypatch.setattr(data, "read_manifest", lambda _: manifest)
    with pytest.raises(InputError, match=rf"annotations\.json, the split test, has no box to measure AP with .*{why}"):
        evaluation.evaluate(detecting, VARIANT, RUNS, OUT)
    assert not OUT.parent.exists()
    # An area of 0 is on the edge and counts.
    flat = [box | {"area": 0} for box in content["annotations"]]
    copy.write_text(json.dumps({**content, "annotations": flat}))
    assert evaluation.evaluate(detecting, VARIANT, RUNS, OUT)["AP"] > 0


def test_an_evaluation_takes_the_place_of_the_one_before_and_writes_the_same_bytes(detecting: Params):
    first = evaluation.evaluate(detecting, VARIANT, RUNS, OUT)
    before = {path: path.read_bytes() for path in OUT.glob("*/*")}
    assert len(before) == len(SEEDS) * len(FILES)
    (OUT / "seed_9").mkdir()
    assert evaluation.evaluate(detecting, VARIANT, RUNS, OUT) == first
    assert {path: path.read_bytes() for path in OUT.glob("*/*")} == before
    assert sorted(path.name for path in OUT.iterdir()) == ["metrics.json", *(f"seed_{seed}" for seed in SEEDS)]
    assert [path.name for path in OUT.parent.iterdir()] == [VARIANT]


def test_only_voc_has_the_ap_of_voc(detecting: Params, monkeypatch: pytest.MonkeyPatch):
    manifest = data.read_manifest(detecting)
    Path("data/voc").symlink_to(Path("data/digits").resolve())
    monkeypatch.setattr(data, "ensure", lambda _: Path("data/voc"))
    monkeypatch.setattr(data, "read_manifest", lambda _: manifest)
    voc = replace(detecting, data=replace(detecting.data, name="voc"))
    metrics = evaluation.evaluate(voc, VARIANT, RUNS, OUT)
    each = [voc_ap50(annotations(voc), OUT / f"seed_{seed}" / "detections.json") for seed in SEEDS]
    assert metrics["VOC_AP50"] == round(float(np.mean(each)), 4) > 0.1
    assert metrics["VOC_AP50"] != metrics["AP50"]


def test_detections_that_do_not_belong_to_the_split_stop_it_and_leave_the_last_result(
    detecting: Params, monkeypatch: pytest.MonkeyPatch
):
    evaluation.evaluate(detecting, VARIANT, RUNS, OUT)
    before = (OUT / "seed_0" / "metrics.json").read_bytes()
    wrong = {"image_id": 77_777, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5}

    monkeypatch.setattr(evaluation, "detect", lambda *_: ([wrong], []))
    with pytest.raises(InputError, match="detections with image_id 77777, which .*instances_test.json does not have"):
        evaluation.evaluate(detecting, VARIANT, RUNS, OUT)
    assert (OUT / "seed_0" / "metrics.json").read_bytes() == before
    assert [path.name for path in OUT.parent.iterdir()] == [VARIANT]


def test_a_missing_model_is_named_with_the_command_that_makes_it(given: Params):
    with pytest.raises(InputError) as caught:
        evaluation.evaluate(given, VARIANT, RUNS, OUT)
    assert str(caught.value) == f"runs/{VARIANT}/seed_0/model.pth is missing: run `dvc repro train@{VARIANT}`"
    assert not list(OUT.parent.iterdir())


def test_two_trained_seeds_are_detected_with_and_judged(given: Params):
    training.train(given, VARIANT, RUNS)
    metrics = evaluation.evaluate(given, VARIANT, RUNS, OUT)
    assert_consistent(given, metrics)
    assert metrics["unreadable_images"] == []
    assert stored(given, 0).found != stored(given, 3).found
    for seed in SEEDS:
        case = stored(given, seed)
        count = np.unique([entry["image_id"] for entry in case.found], return_counts=True)[1]
        assert len(count) == 12 and count.max() <= given.evaluate.max_per_image
        assert {entry["category_id"] for entry in case.found} <= {entry["id"] for entry in case.truth["categories"]}
        assert all(0 < entry["score"] <= 1 for entry in case.found)
    assert not list(OUT.rglob(".*"))
    before = [(OUT / f"seed_{seed}" / "detections.json").read_bytes() for seed in SEEDS]
    assert evaluation.evaluate(given, VARIANT, RUNS, OUT) == metrics
    assert [(OUT / f"seed_{seed}" / "detections.json").read_bytes() for seed in SEEDS] == before
