"""Laws of `python -m ghm.export`: other programs find what the trained detector finds."""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner

from ghm import files, params, runs
from ghm.detect.detector import Detector, find_run
from ghm.errors import InputError
from ghm.evaluation.judge import judge
from ghm.evaluation.run import detect
from ghm.export import __main__ as command_line
from ghm.export import onnx_model
from ghm.export import run as export
from ghm.export.onnx_model import runtime
from ghm.predict import Detections, predict
from ghm.training.samples import collate
from tests.trained import RUN, VARIANT

TEST = Path("data/digits/test")
FILES = ["config.py", "model.onnx", "model.pth"]


@pytest.fixture(autouse=True)
def all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model trained for seconds scores low, so all its detections count."""
    monkeypatch.setattr(export, "SCORE", 0.0)


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["export", "--variant", VARIANT, *map(str, words)])
    command_line.main()


def images(height: int, width: int) -> torch.Tensor:
    """Smooth noise of any size, as an image is after resizing: uint8 [3, H, W]."""
    coarse = np.random.default_rng(0).integers(0, 255, (1, 3, -(-height // 8), -(-width // 8)))
    noise = torch.nn.functional.interpolate(torch.from_numpy(coarse).float(), scale_factor=8.0, mode="bilinear")
    return noise[0, :, :height, :width].byte()


def require_alike(model: Any, run: Callable[[np.ndarray], Detections], image: torch.Tensor, least: int) -> None:
    """PyTorch and the graph find `least` detections or more, and of each a hundred at most one that differs."""
    size = tuple(image.shape[1:])
    meta = {"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)}
    batch = collate([{"inputs": image, "data_samples": DetDataSample(metainfo=meta)}])
    [(_, pytorch)] = predict(model, [batch])
    onnx = run(image.flip(0)[None].float().numpy())
    same = export.alike(pytorch, onnx, max(size))
    assert same >= least and same >= 0.99 * max(len(pytorch.score_N), len(onnx.score_N))


def build(head: dict[str, Any], test: dict[str, Any]) -> Any:
    """A detector with random weights, changed in its head and in what it keeps."""
    cfg = export.plain_config(Config.fromfile(RUN / "config.py"))
    cfg.model.bbox_head.update(head)
    cfg.model.test_cfg.update(test)
    torch.manual_seed(0)
    model: Any = MODELS.build({**cfg.model, "_scope_": "mmdet"})
    for layer in (model.bbox_head.retina_cls, model.bbox_head.retina_reg):
        torch.nn.init.normal_(layer.weight, std=0.2)
    return model.eval()


def test_the_graph_finds_what_pytorch_finds_and_says_what_it_takes(place: Path, monkeypatch: pytest.MonkeyPatch):
    command(monkeypatch, "--out", "out", "--check", 8)
    assert sorted(path.name for path in Path("out").iterdir()) == FILES
    model, run = Detector.open(*find_run(VARIANT, 0), device="cpu").model, runtime(Path("out/model.onnx"))
    for height, width in ((64, 64), (33, 97), (130, 61), (1, 40)):
        require_alike(model, run, images(height, width), least=11)
    graph = onnx.load("out/model.onnx")
    said = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(said["classes"]) == list("0123456789")
    assert json.loads(said["image_scale"]) == [64, 64] and json.loads(said["score_threshold"]) == 0.0
    assert "operating_score" not in said, "the run is not evaluated"
    assert said["variant"] == VARIANT and said["seed"] == "0"
    assert [value.name for value in (*graph.graph.input, *graph.graph.output)] == ["image", "boxes", "scores", "labels"]


@pytest.mark.parametrize(
    ("head", "test", "least"),
    [
        ({"loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False}}, {}, 3),
        (
            {"reg_decoded_bbox": True, "loss_bbox": {"type": "GIoULoss"}},
            {"nms": dict(type="nms", iou_threshold=0.1)},
            3,
        ),
        ({}, {"score_thr": 0.3, "nms_pre": 7, "max_per_img": 5, "min_bbox_size": 12}, 3),
        ({}, {"score_thr": 1.0}, 0),
    ],
    ids=["softmax", "decoded", "few", "none"],
)
def test_every_head_and_every_limit_of_the_config_is_in_the_graph(
    place: Path, head: dict[str, Any], test: dict[str, Any], least: int
):
    model = build(head, test)
    onnx_model.write(model, {}, Path("model.onnx"))
    run = runtime(Path("model.onnx"))
    for height, width in ((64, 64), (70, 110)):
        require_alike(model, run, images(height, width), least)


def test_config_and_weights_run_in_mmdets_own_tools_and_give_the_ap_of_the_evaluation(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    command(monkeypatch, "--out", "out", "--check", 0)
    assert "ghm." not in Path("out/config.py").read_text()
    content = torch.load("out/model.pth", weights_only=True)
    detector: Any = init_detector("out/config.py", "out/model.pth", device="cpu")
    detector.load_state_dict(content["state_dict"], strict=True)
    assert detector.dataset_meta["classes"] == list("0123456789")
    own = Detector.open(*find_run(VARIANT, 0), device="cpu")
    paths = sorted(TEST.glob("*.jpg"))[:3]
    for path, (_, expected) in zip(paths, predict(own.model, own.batches(paths)), strict=True):
        found: Any = inference_detector(detector, str(path))
        assert found.pred_instances.bboxes.numpy() == pytest.approx(expected.box_N4, abs=1e-3)
        assert found.pred_instances.labels.tolist() == expected.label_N.tolist()
    with contextlib.redirect_stdout(io.StringIO()):
        cfg = Config.fromfile("out/config.py")
        cfg.log_level = "WARNING"
        metrics = Runner.from_cfg(cfg).test()
    detections, _ = detect(params.load(), VARIANT, 0, RUN / "model.pth", "test")
    Path("detections.json").write_text(json.dumps(detections))
    judged = judge(Path("data/digits/annotations/instances_test.json"), Path("detections.json"))
    assert metrics["coco/bbox_mAP"] == pytest.approx(judged.metrics["AP"], abs=1e-3)


def test_the_operating_point_travels_and_detect_takes_it_from_the_exported_config(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    point = {"score": 0.123456789, "chosen_on": "val"}
    origin = {"fingerprint": runs.Record.read(RUN).fingerprint}
    files.write_json(runs.detections_folder(VARIANT, 0) / runs.OUTCOME, point | origin)
    command(monkeypatch, "--out", "out", "--check", 0)
    said = {entry.key: entry.value for entry in onnx.load("out/model.onnx").metadata_props}
    assert json.loads(said["operating_score"]) == point["score"]
    detector = Detector.open(Path("out/config.py"), Path("out/model.pth"), device="cpu")
    assert detector.score == point["score"] and "the best F1 on val" in detector.score_is
    assert json.loads(said["score_threshold"]) == 0.0, "the graph has all that the evaluation measures"


def test_a_graph_that_differs_is_refused_and_nothing_is_written(place: Path, monkeypatch: pytest.MonkeyPatch):
    whole = onnx_model.Portable.forward

    def shifted(self: onnx_model.Portable, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        boxes, scores, labels = whole(self, image)
        return boxes + 1.0, scores, labels

    monkeypatch.setattr(onnx_model.Portable, "forward", shifted)
    with pytest.raises(InputError, match=r"differ in \d+ detections of \d+ on 2 images, and nothing is written"):
        command(monkeypatch, "--out", "out", "--check", 2)
    assert list(Path("out").iterdir()) == []


def test_a_comparison_needs_images_and_the_validation_split(place: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="--check must be 0 or greater, got -1"):
        command(monkeypatch, "--out", "out", "--check", -1)
    Path("data/digits").unlink()
    with pytest.raises(InputError, match="instances_val.json, to compare on, is missing: run `dvc repro data`"):
        command(monkeypatch, "--out", "out")
    command(monkeypatch, "--out", "out", "--check", 0)
    assert sorted(path.name for path in Path("out").iterdir()) == FILES


ONE = (0.0, 20.0, 0.9, 1)


@pytest.mark.parametrize(
    ("pytorch", "onnxs", "expected"),
    [
        ([ONE], [(0.0, 20.0, 0.90005, 1)], 1),
        ([ONE], [(0.005, 20.0, 0.9, 1)], 1),
        ([ONE], [(0.0, 20.0, 0.9002, 1)], 0),  # another score
        ([ONE], [(0.02, 20.0, 0.9, 1)], 0),  # another place
        ([ONE], [(0.0, 20.0, 0.9, 2)], 0),  # another class
        ([ONE], [], 0),
        ([ONE, ONE], [ONE], 1),
        ([ONE, (0.005, 20.0, 0.9, 1)], [(0.012, 20.0, 0.9, 1), ONE], 2),  # only the second fits the first
    ],
)
def test_each_detection_has_one_like_it_at_most(pytorch: list[Any], onnxs: list[Any], expected: int):
    def found(rows: list[tuple[float, float, float, int]]) -> Detections:
        boxes = np.array([[left, 0.0, left + width, 10.0] for left, width, _, _ in rows]).reshape(-1, 4)
        return Detections(boxes, np.array([row[2] for row in rows]), np.array([row[3] for row in rows], int))

    assert export.alike(found(pytorch), found(onnxs), side=100) == expected
