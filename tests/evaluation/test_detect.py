"""Laws of detecting on a split: neither the batches nor the processes that share the images show in what is found."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ghm import config, data, params
from ghm.evaluation import run as evaluation
from ghm.evaluation.judge import judge
from ghm.params import Params
from ghm.predict import load, predict
from ghm.registry import DATASETS
from ghm.training.samples import collate
from tests.conftest import ROOT, override_file
from tests.evaluation.conftest import BROKEN, IMAGES, prepare
from tests.trained import RUN, VARIANT

MODEL = RUN / "model.pth"
Rows = Sequence[dict[str, Any]]
CLOSE = np.array([0, 1e-5, 0.02, 0.02, 0.02, 0.02])  # class, score, and box in pixels: float32, and no more


def detect(parameters: Params, **changes: Any) -> tuple[Rows, list[str]]:
    """On the test split, with other values in the section `evaluate`."""
    changed = replace(parameters, evaluate=replace(parameters.evaluate, **changes))
    return evaluation.detect(changed, VARIANT, 0, MODEL, "test")


def padded_to_the_largest(parameters: Params, batch_size: int) -> Rows:
    """What is found in batches in the order of the data set, as mmdet would have it."""
    cfg = config.for_run(parameters, VARIANT, 0)
    dataset: Any = DATASETS.build(cfg.test_dataloader.dataset)
    ids = dataset.dataset.cat_ids
    starts = range(0, len(dataset), batch_size)
    batches = (collate([dataset[n] for n in range(start, min(start + batch_size, len(dataset)))]) for start in starts)
    return [row for sample, found in predict(load(cfg, MODEL, ""), batches) for row in found.coco(sample.img_id, ids)]


def by_image(rows: Rows) -> dict[int, np.ndarray]:
    """Image -> class, score and box of each detection, float [N, 6]."""
    found: dict[int, list[list[float]]] = {}
    for row in rows:
        found.setdefault(row["image_id"], []).append([row["category_id"], row["score"], *row["bbox"]])
    return {image: np.array(lines) for image, lines in found.items()}


def same(found: Rows, expected: Rows) -> bool:
    """Whether each detection has its like. Near the lowest score of an image another one may be among the last."""
    both = by_image(found), by_image(expected)
    if both[0].keys() != both[1].keys():
        return False
    for image in both[0]:
        one, other = both[0][image], both[1][image]
        near = np.all(np.abs(one[:, None] - other) <= CLOSE, axis=2)
        surely, of_other = (lines[:, 1] > lines[:, 1].min() + 1e-4 for lines in (one, other))
        if not (near.any(1)[surely].all() and near.any(0)[of_other].all()):
            return False
    return True


def ap(found: Rows, truth: Rows, best: int = 10) -> float:
    """Of detections, where the best of each image in `truth` are what there is to be found."""
    content = json.loads(Path("mixed/test.json").read_text())
    kept = [row for image in by_image(truth) for row in [each for each in truth if each["image_id"] == image][:best]]
    boxes = [{**row, "id": number, "area": 99, "iscrowd": 0} for number, row in enumerate(kept, start=1)]
    Path("truth.json").write_text(json.dumps({**content, "annotations": boxes}))
    Path("found.json").write_text(json.dumps(found))
    return judge(Path("truth.json"), Path("found.json")).metrics["AP"]


@pytest.fixture
def alone(mixed: Path) -> tuple[Params, Rows]:
    """The parameters, and what is found on each image by itself."""
    given = prepare()
    return given, detect(given, batch_size=1)[0]


def test_neither_detections_nor_ap_depend_on_the_batch_size_or_the_workers(alone: tuple[Params, Rows]):
    given, expected = alone
    assert ap(expected, expected) > 0.3
    for batch_size, workers in ((2, 0), (3, 2), (8, 0), (64, 0)):
        found, _ = detect(replace(given, machine=replace(given.machine, workers=workers)), batch_size=batch_size)
        assert list(by_image(found)) == list(range(1, IMAGES + 1)), "the order of the data set"
        assert all((np.diff(lines[:, 1]) <= 0).all() for lines in by_image(found).values()), "the best first"
        assert same(found, expected)
        assert ap(found, expected) == pytest.approx(ap(expected, expected), abs=1e-3)
        other = padded_to_the_largest(given, batch_size)
        assert not same(other, expected) and ap(other, expected) < ap(expected, expected) - 0.2, "the test can fail"


def test_sizes_that_the_annotations_have_wrong_change_nothing(
    alone: tuple[Params, Rows], monkeypatch: pytest.MonkeyPatch
):
    """An image that was turned or replaced after its labels were made."""
    given, expected = alone
    manifest = data.read_manifest(given)
    described = manifest["splits"]["test"]
    content = json.loads((Path("data/custom") / described["annotations"]).read_text())
    for number, image in enumerate(content["images"]):
        image.update(width=1 + 37 * number % 200, height=90)
    Path("wrong.json").write_text(json.dumps(content))
    described["annotations"] = str(Path("wrong.json").resolve())
    monkeypatch.setattr(data, "read_manifest", lambda _: manifest)
    assert same(detect(given, batch_size=4)[0], expected)


def test_in_bf16_the_network_is_reduced_and_boxes_are_not(alone: tuple[Params, Rows]):
    given, expected = alone
    model = load(config.for_run(given, VARIANT, 0), MODEL, "")
    dataset: Any = DATASETS.build(config.for_run(given, VARIANT, 0).test_dataloader.dataset)
    kinds: set[torch.dtype] = set()
    for part in (model.backbone.conv1, model.neck.lateral_convs[0].conv, model.bbox_head.retina_reg):
        part.register_forward_hook(lambda _part, _inputs, output: kinds.add(output.dtype))
    for precision, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        kinds.clear()
        [(sample, _)] = predict(model, [collate([dataset[0]])], precision=precision)
        assert kinds == {kind}
        assert sample.pred_instances.bboxes.dtype == sample.pred_instances.scores.dtype == torch.float32
    reduced = detect(given, precision="bf16")[0]
    assert not same(reduced, expected)
    assert ap(reduced, expected) == pytest.approx(ap(expected, expected), abs=0.05)
    scores = [np.array([row["score"] for row in rows]) for rows in (reduced, expected)]
    assert np.abs(scores[0] - scores[1]).max() < 0.02


@pytest.mark.parametrize("tf32", [False, True])
def test_cuda_rounds_to_tf32_where_the_parameters_say_so_and_nowhere_else(
    place: Path, monkeypatch: pytest.MonkeyPatch, tf32: bool
):
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
        monkeypatch.setattr(backend, "allow_tf32", not tf32)
    given = params.load()
    detect(replace(given, train=replace(given.train, tf32=tf32)))
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is tf32


def stage(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the stage in two processes."""
    override_file(folder / "params.yaml", {"machine.launcher": "pytorch"})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GHM_PROCESSES": "2"}
    command = [sys.executable, "-m", "stages.evaluate", VARIANT]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_two_processes_write_the_bytes_of_one(place: Path):
    override_file(Path("params.yaml"), {"evaluate.batch_size": 3})
    metrics = evaluation.evaluate(params.load(), VARIANT, RUN.parent, Path("one"))
    done = stage(place)
    assert done.returncode == 0, done.stdout + done.stderr
    written = {path.relative_to("one"): path.read_bytes() for path in Path("one").rglob("*.*")}
    out = Path("detections") / VARIANT
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*.*")} == written
    assert len(written) == 6
    assert json.loads((place / "metrics" / f"{VARIANT}.json").read_text()).items() <= metrics.items()


def test_two_processes_find_what_one_finds_and_count_together_what_cannot_be_read(mixed: Path):
    override_file(Path("params.yaml"), {"data.max_bad_images": 2})
    given = prepare(BROKEN)
    expected, left_out = detect(given)
    assert left_out == [f"{number}.png" for number in BROKEN]
    done = stage(mixed)
    assert done.returncode == 0, done.stdout + done.stderr
    out = Path("detections") / VARIANT
    assert same(json.loads((out / "seed_0" / "detections.json").read_text()), expected)
    assert json.loads((out / "metrics.json").read_text())["unreadable_images"] == left_out
    before = (out / "metrics.json").read_bytes()
    override_file(Path("params.yaml"), {"data.max_bad_images": 1})
    done = stage(mixed)
    assert done.returncode == 1
    said = re.findall("^error: (.*?): ", done.stderr, re.MULTILINE)
    assert said == ["2 images cannot be read and data.max_bad_images is 1"]
    assert (out / "metrics.json").read_bytes() == before and [*out.parent.iterdir()] == [out]
