"""Laws of the evaluation of trained variants: what is written is what pycocotools says of the stored detections."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ghm import data, fingerprint, params, runs, training
from ghm.errors import InputError
from ghm.evaluation import bootstrap, matches, outcome
from ghm.evaluation import run as evaluation
from ghm.evaluation.bootstrap import Resampled
from ghm.evaluation.judge import SUMMARY, judge, voc_ap50
from ghm.params import Params
from ghm.training.processes import Processes
from tests.evaluation.cases import Case, pycocotools

VARIANT = "ghmc_ghmr"
RUNS, OUT = Path("runs") / VARIANT, Path("detections") / VARIANT
SEEDS = (0, 3)
FILES = ["detections.json", "matches.npz", "metrics.json", "outcome.json", "resampled.npz"]


@pytest.fixture
def given(workspace: Path) -> Params:
    """The tiny parameters with two seeds."""
    return replace(params.load(), seeds=SEEDS)


def annotations(given: Params, split: str = "test") -> Path:
    return Path("data") / given.data.name / data.read_manifest(given)["splits"][split]["annotations"]


@pytest.fixture
def detecting(given: Params, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Instead of a network: most true boxes, some pixels aside, and an image left out of the name of the seed."""

    def detect(
        params: Params, variant: str, seed: int, model: Path, split: str, _processes: Processes
    ) -> tuple[list[Any], list[str]]:
        assert (variant, model) == (VARIANT, RUNS / f"seed_{seed}" / "model.pth")
        rng = np.random.default_rng([seed, split == "test"])
        boxes = json.loads(annotations(params, split).read_text())["annotations"]
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
    for seed in SEEDS:
        (RUNS / f"seed_{seed}").mkdir(parents=True)
        runs.Record(
            revision="", device="", versions={}, dataset="digits", variant=VARIANT, seed=seed, epochs=1, images=1,
            category_ids=[], parameters=1, pretrained=None, load_from=None, fingerprint=f"of {seed}", conditions={},
            seconds=1, processes=1, unreadable_images=0,
        ).write(RUNS / f"seed_{seed}")  # fmt: skip
    return given


def require_consistent(given: Params, metrics: dict[str, Any]) -> None:
    """Each seed has its files, and all that they and `metrics` say follows from the detections."""
    assert sorted(path.name for path in OUT.iterdir()) == ["metrics.json", *(f"seed_{seed}" for seed in SEEDS)]
    assert json.loads((OUT / "metrics.json").read_text()) == metrics
    figures, resampled = [], []
    for seed in SEEDS:
        folder = OUT / f"seed_{seed}"
        assert sorted(path.name for path in folder.iterdir()) == FILES
        judged = judge(annotations(given), folder / "detections.json")
        stats = pycocotools(Case(judged.truth, judged.detections)).stats
        figures.append({name: stats[number] for name, number in SUMMARY.items() if stats[number] > -1})
        own = json.loads((folder / "metrics.json").read_text())
        assert own.keys() == {*figures[-1], "classes", "intervals", "unreadable_images"}
        assert {name: own[name] for name in figures[-1]} == {name: round(f, 4) for name, f in figures[-1].items()}
        assert (matches.read(folder) > 0).sum() == judged.matches.hit_TD[0].sum()
        found = json.loads((folder / "outcome.json").read_text())
        record = runs.Record.read(RUNS / f"seed_{seed}")
        origin = {"chosen_on": "val", "fingerprint": record.fingerprint}
        assert found == outcome.measure(judged, found["score"]) | origin
        resampled.append(Resampled.load(folder / "resampled.npz"))
        described = data.read_manifest(given)["splits"][given.evaluate.split]
        assert resampled[-1].measured_on == fingerprint.measured_data(described)
    for name in figures[0]:
        assert metrics[name] == round(float(np.mean([figure[name] for figure in figures])), 4)
    for name, ends in metrics["intervals"].items():
        found = bootstrap.interval(np.stack([own.value_B[name] for own in resampled]), resampled[0].images)
        assert found and ends == [round(found.low, 4), round(found.high, 4)]
    assert metrics["intervals"].keys() == set(bootstrap.METRICS)
    for name, ap in metrics["classes"].items():
        assert ap == pytest.approx(float(np.mean([own.value_B[f"AP_{name}"][0] for own in resampled])), abs=5.1e-5)
    assert "-1.0" not in (OUT / "metrics.json").read_text(), "what is not defined is absent"


def test_what_is_written_and_returned_follows_from_the_detections_of_each_seed(detecting: Params):
    metrics = evaluation.evaluate(detecting, VARIANT, RUNS, OUT)
    require_consistent(detecting, metrics)
    low, high = metrics["intervals"]["AP"]
    assert low < metrics["AP"] < high and 0.1 < metrics["AP"] < 0.9
    assert metrics["unreadable_images"] == ["0.png", "3.png"]
    single = [json.loads((OUT / f"seed_{seed}" / "metrics.json").read_text())["unreadable_images"] for seed in SEEDS]
    assert single == [["0.png"], ["3.png"]]


def test_a_split_without_a_box_that_counts_is_refused_before_it_is_detected_on(
    detecting: Params, monkeypatch: pytest.MonkeyPatch
):
    content = json.loads(annotations(detecting).read_text())
    copy = Path("annotations.json").resolve()
    manifest = data.read_manifest(detecting)
    manifest["splits"]["test"]["annotations"] = str(copy)
    monkeypatch.setattr(data, "ensure", lambda _: None)
    monkeypatch.setattr(data, "read_manifest", lambda _: manifest)
    for change in ({"iscrowd": 1}, {"area": -1}):
        copy.write_text(json.dumps({**content, "annotations": [box | change for box in content["annotations"]]}))
        with pytest.raises(InputError, match=r"annotations\.json, the split test, has no box to measure AP with"):
            evaluation.evaluate(detecting, VARIANT, RUNS, OUT)
        assert not OUT.parent.exists()


def test_the_score_is_chosen_on_the_validation_split_and_on_the_reported_one_where_that_has_no_boxes(
    detecting: Params, monkeypatch: pytest.MonkeyPatch
):
    def scores(given: Params) -> list[tuple[str, float]]:
        evaluation.evaluate(given, VARIANT, RUNS, OUT)
        found = [json.loads((OUT / f"seed_{seed}" / "outcome.json").read_text()) for seed in SEEDS]
        return [(one["chosen_on"], one["score"]) for one in found]

    def best(split: str) -> list[tuple[str, float]]:
        found = []
        for seed in SEEDS:
            model = RUNS / f"seed_{seed}" / "model.pth"
            rows, _ = evaluation.detect(detecting, VARIANT, seed, model, split, Processes())
            Path("found.json").write_text(json.dumps(rows))
            found.append((split, outcome.best_score(judge(annotations(detecting, split), Path("found.json")))))
        return found

    assert scores(detecting) == best("val") != best("test")
    manifest = data.read_manifest(detecting)
    monkeypatch.setattr(data, "ensure", lambda _: None)
    monkeypatch.setattr(data, "read_manifest", lambda _: manifest)
    empty = json.loads(annotations(detecting, "val").read_text()) | {"annotations": []}
    manifest["splits"]["val"]["annotations"] = str(Path("empty.json").resolve())
    Path("empty.json").write_text(json.dumps(empty))
    assert scores(detecting) == best("test")


def test_an_evaluation_takes_the_place_of_the_one_before_and_writes_the_same_bytes(detecting: Params):
    first = evaluation.evaluate(detecting, VARIANT, RUNS, OUT)
    before = {path: path.read_bytes() for path in OUT.glob("*/*")}
    (OUT / "seed_9").mkdir()
    assert evaluation.evaluate(detecting, VARIANT, RUNS, OUT) == first
    assert {path: path.read_bytes() for path in OUT.glob("*/*")} == before
    require_consistent(detecting, first)


def test_only_voc_has_the_ap_of_voc(detecting: Params, monkeypatch: pytest.MonkeyPatch):
    manifest = data.read_manifest(detecting)
    Path("data/voc").symlink_to(Path("data/digits").resolve())
    monkeypatch.setattr(data, "ensure", lambda _: Path("data/voc"))
    monkeypatch.setattr(data, "read_manifest", lambda _: manifest)
    voc = replace(detecting, data=replace(detecting.data, name="voc"))
    metrics = evaluation.evaluate(voc, VARIANT, RUNS, OUT)
    single = [voc_ap50(judge(annotations(voc), OUT / f"seed_{seed}" / "detections.json")) for seed in SEEDS]
    assert metrics["VOC_AP50"] == round(float(np.mean(single)), 4) > 0.1
    assert metrics["VOC_AP50"] != metrics["AP50"]


def test_detections_that_do_not_belong_to_the_split_stop_it_and_leave_the_last_result(
    detecting: Params, monkeypatch: pytest.MonkeyPatch
):
    evaluation.evaluate(detecting, VARIANT, RUNS, OUT)
    before = (OUT / "seed_0" / "metrics.json").read_bytes()
    wrong = {"image_id": 77_777, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5}

    monkeypatch.setattr(evaluation, "detect", lambda *_: ([wrong], []))
    with pytest.raises(InputError, match="detections with image_id 77777, which .*instances_val.json does not have"):
        evaluation.evaluate(detecting, VARIANT, RUNS, OUT)
    assert (OUT / "seed_0" / "metrics.json").read_bytes() == before
    assert [path.name for path in OUT.parent.iterdir()] == [VARIANT]


def test_a_missing_model_is_named_with_the_command_that_makes_it(given: Params):
    with pytest.raises(InputError, match=f"^{RUNS}/seed_0/model.pth is missing: run `dvc repro train@{VARIANT}`$"):
        evaluation.evaluate(given, VARIANT, RUNS, OUT)
    assert not list(OUT.parent.iterdir())


def test_two_trained_seeds_are_detected_with_and_judged(given: Params):
    training.train(given, VARIANT, RUNS)
    metrics = evaluation.evaluate(given, VARIANT, RUNS, OUT)
    require_consistent(given, metrics)
    assert metrics["unreadable_images"] == []
    results = [json.loads((OUT / f"seed_{seed}" / "detections.json").read_text()) for seed in SEEDS]
    assert results[0] != results[1]
    for found in results:
        count = np.unique([entry["image_id"] for entry in found], return_counts=True)[1]
        assert len(count) == 12 and count.max() <= given.evaluate.max_per_image
        assert all(0 < entry["score"] <= 1 for entry in found)
