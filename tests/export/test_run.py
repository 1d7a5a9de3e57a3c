"""Laws of `python -m ghm.export`: other programs find what the trained detector finds."""

import contextlib
import io
import json
import sys
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
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ghm import params
from ghm.detect.detector import Detector, find_run
from ghm.errors import InputError
from ghm.evaluation.run import detect
from ghm.export import __main__ as command_line
from ghm.export import onnx_model
from ghm.export import run as export
from ghm.export.onnx_model import Runtime
from ghm.predict import Detections, predict
from ghm.training.samples import collate
from tests.trained import RUN, VARIANT, train_tiny, with_runs

TEST = Path("data/digits/test")
FILES = ["config.py", "model.onnx", "model.pth"]


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tiny, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def place(workspace: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trained workspace. A model trained for seconds scores low, so all its detections count."""
    monkeypatch.setattr(export, "SCORE", 0.0)
    return with_runs(workspace, trained)


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["export", "--variant", VARIANT, *map(str, words)])
    command_line.main()


def images(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth noise of any size, as an image is after resizing: uint8 [3, H, W]."""
    coarse = np.random.default_rng(seed).integers(0, 255, (1, 3, -(-height // 8), -(-width // 8)))
    noise = torch.nn.functional.interpolate(torch.from_numpy(coarse).float(), scale_factor=8.0, mode="bilinear")
    return noise[0, :, :height, :width].byte()


def require_alike(model: Any, runtime: Runtime, image: torch.Tensor, least: int) -> None:
    """PyTorch and the graph find `least` detections or more, and of each a hundred at most one that differs."""
    size = tuple(image.shape[1:])
    meta = {"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)}
    batch = collate([{"inputs": image, "data_samples": DetDataSample(metainfo=meta)}])
    [(_, pytorch)] = predict(model, [batch])
    onnx = runtime(image.flip(0)[None].float().numpy())
    same = export.alike(pytorch, onnx, max(size))
    assert same >= least and same >= 0.99 * max(len(pytorch.score_N), len(onnx.score_N))


def build(head: dict[str, Any], test: dict[str, Any]) -> Any:
    """A detector with random weights, changed in its head and in what it keeps."""
    cfg = export.plain_config(Config.fromfile(RUN / "config.py"), VARIANT)
    for name, value in head.items():
        cfg.model.bbox_head[name] = value
    for name, value in test.items():
        cfg.model.test_cfg[name] = value
    torch.manual_seed(0)
    model: Any = MODELS.build({**cfg.model, "_scope_": "mmdet"})
    for layer in (model.bbox_head.retina_cls, model.bbox_head.retina_reg):
        torch.nn.init.normal_(layer.weight, std=0.2)
    return model.eval()


def test_the_graph_finds_what_pytorch_finds_at_any_size(place: Path, monkeypatch: pytest.MonkeyPatch):
    command(monkeypatch, "--out", "out", "--check", 8)
    assert sorted(path.name for path in Path("out").iterdir()) == FILES
    model, runtime = Detector.open(*find_run(VARIANT, 0), device="cpu").model, Runtime(Path("out/model.onnx"))
    for height, width in ((64, 64), (33, 97), (130, 61), (1, 40)):
        require_alike(model, runtime, images(height, width), least=11)


@pytest.mark.parametrize(
    ("head", "test"),
    [
        ({"loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False}}, {}),  # softmax, and a logit for background
        ({"reg_decoded_bbox": True, "loss_bbox": {"type": "GIoULoss"}}, {"nms": {"type": "nms", "iou_threshold": 0.1}}),
        ({}, {"score_thr": 0.3, "nms_pre": 7, "max_per_img": 5, "min_bbox_size": 12}),
    ],
    ids=["softmax", "decoded", "few"],
)
def test_every_head_and_every_limit_of_the_config_is_in_the_graph(
    place: Path, head: dict[str, Any], test: dict[str, Any]
):
    model = build(head, test)
    onnx_model.write(model, {}, Path("model.onnx"))
    runtime = Runtime(Path("model.onnx"))
    for seed, (height, width) in enumerate(((64, 64), (70, 110))):
        require_alike(model, runtime, images(height, width, seed), least=3)


def test_an_image_without_detections_has_empty_outputs(place: Path):
    onnx_model.write(build({}, {"score_thr": 1.0}), {}, Path("model.onnx"))
    found = Runtime(Path("model.onnx"))(images(64, 96)[None].float().numpy())
    assert (found.box_N4.shape, found.score_N.shape, found.label_N.shape) == ((0, 4), (0,), (0,))


def test_the_graph_says_what_it_takes_and_gives(place: Path, monkeypatch: pytest.MonkeyPatch):
    command(monkeypatch, "--out", "out", "--check", 0)
    graph = onnx.load("out/model.onnx")
    said = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(said["classes"]) == list("0123456789")
    assert json.loads(said["image_scale"]) == [64, 64] and json.loads(said["score_threshold"]) == 0.0
    assert said["variant"] == VARIANT and said["seed"] == "0"
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    assert shapes == {
        "image": [1, 3, "height", "width"],
        "boxes": ["detections", 4],
        "scores": ["detections"],
        "labels": ["detections"],
    }


def test_config_and_weights_run_in_mmdets_own_tools(place: Path, monkeypatch: pytest.MonkeyPatch):
    command(monkeypatch, "--out", "out", "--check", 0)
    assert "ghm." not in Path("out/config.py").read_text()
    content = torch.load("out/model.pth", weights_only=True)
    assert not [name for name in content["state_dict"] if "loss" in name]
    detector: Any = init_detector("out/config.py", "out/model.pth", device="cpu")
    detector.load_state_dict(content["state_dict"], strict=True)
    assert detector.dataset_meta["classes"] == list("0123456789")
    assert not [part for part in detector.modules() if type(part).__module__.startswith("ghm")]
    own = Detector.open(*find_run(VARIANT, 0), device="cpu")
    paths = sorted(TEST.glob("*.jpg"))[:3]
    for path, (_, expected) in zip(paths, predict(own.model, own.batches(paths, 1)), strict=True):
        found: Any = inference_detector(detector, str(path))
        assert found.pred_instances.bboxes.numpy() == pytest.approx(expected.box_N4, abs=1e-3)
        assert found.pred_instances.labels.tolist() == expected.label_N.tolist()


def test_mmdets_test_gives_the_ap_of_the_evaluation(place: Path, monkeypatch: pytest.MonkeyPatch):
    command(monkeypatch, "--out", "out", "--check", 0)
    with contextlib.redirect_stdout(io.StringIO()):
        cfg = Config.fromfile("out/config.py")
        cfg.log_level = "WARNING"
        metrics = Runner.from_cfg(cfg).test()
        detections, _ = detect(params.load(), VARIANT, 0, RUN / "model.pth", "test")
        truth = COCO("data/digits/annotations/instances_test.json")
        results: Any = detections
        judge = COCOeval(truth, truth.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert metrics["coco/bbox_mAP"] == pytest.approx(judge.stats[0], abs=1e-3)


def test_a_graph_that_differs_is_refused_and_nothing_is_written(place: Path, monkeypatch: pytest.MonkeyPatch):
    whole = onnx_model.Portable.forward

    def shifted(self: onnx_model.Portable, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        boxes, scores, labels = whole(self, image)
        return boxes + 1.0, scores, labels

    monkeypatch.setattr(onnx_model.Portable, "forward", shifted)
    with pytest.raises(InputError, match=r"differ in \d+ detections of \d+ on 2 images, and nothing is written"):
        command(monkeypatch, "--out", "out", "--check", 2)
    assert list(Path("out").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--seed", "3"], "seed_3 holds no finished run, there is seed_0"),
        (["--variant", "fl_sl1"], "model.pth is missing: run `dvc repro train@fl_sl1`"),
        (["--variant", "nonsense"], "the variant must be one of fl_sl1, .*, got 'nonsense'"),
        (["--check", "-1"], "--check must be 0 or greater, got -1"),
        (["--out", "params.yaml"], "--out must be a folder, params.yaml is a file"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    place: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
):
    with pytest.raises(InputError, match=sentence):
        command(monkeypatch, "--out", "out", *words)
    assert not Path("out").exists()


def test_a_comparison_needs_the_validation_split(place: Path, monkeypatch: pytest.MonkeyPatch):
    Path("data/digits").unlink()
    with pytest.raises(InputError, match="instances_val.json, to compare on, is missing: run `dvc repro data`"):
        command(monkeypatch, "--out", "out")
    command(monkeypatch, "--out", "out", "--check", 0)
    assert sorted(path.name for path in Path("out").iterdir()) == FILES


ONE = (0.0, 20.0, 0.9, 1)


@pytest.mark.parametrize(
    ("pytorch", "onnxs", "expected"),
    [
        ([ONE], [ONE], 1),
        ([ONE], [(0.0, 20.0, 0.90005, 1)], 1),
        ([ONE], [(0.005, 20.0, 0.9, 1)], 1),
        ([ONE], [(0.0, 20.0, 0.9002, 1)], 0),  # another score
        ([ONE], [(0.02, 20.0, 0.9, 1)], 0),  # another place
        ([ONE], [(0.0, 20.0, 0.9, 2)], 0),  # another class
        ([ONE], [], 0),
        ([], [], 0),
        ([ONE, ONE], [ONE], 1),
        ([ONE, (0.005, 20.0, 0.9, 1)], [(0.012, 20.0, 0.9, 1), ONE], 2),  # only the second fits the first
    ],
)
def test_each_detection_has_one_like_it_at_most(pytorch: list[Any], onnxs: list[Any], expected: int):
    def found(rows: list[tuple[float, float, float, int]]) -> Detections:
        boxes = np.array([[left, 0.0, left + width, 10.0] for left, width, _, _ in rows]).reshape(-1, 4)
        return Detections(boxes, np.array([row[2] for row in rows]), np.array([row[3] for row in rows], int))

    assert export.alike(found(pytorch), found(onnxs), side=100) == expected
