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
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.jit._trace import TracerWarning

from ghm import params
from ghm.detect.detector import Detections, Detector, find_run
from ghm.errors import InputError
from ghm.evaluation.run import detect
from ghm.export import __main__ as export
from ghm.export import onnx_check, onnx_model
from ghm.export.onnx_check import Outcome, Rules, predict
from ghm.export.onnx_model import Runtime
from tests.trained import RUN, VARIANT, train_tiny, with_runs

TEST = Path("data/digits/test")
FILES = ["config.py", "model.onnx", "model.pth"]


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tiny, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def place(workspace: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trained workspace. A model trained for seconds scores low, so all its detections count."""
    monkeypatch.setattr(onnx_check, "SCORE", 0.0)
    return with_runs(workspace, trained)


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["export", "--variant", VARIANT, *map(str, words)])
    export.main()


def sample(height: int, width: int, seed: int = 0) -> dict[str, Any]:
    """mmdet's input of a network: smooth noise of any size, as it is after resizing."""
    from mmdet.structures import DetDataSample

    coarse = np.random.default_rng(seed).integers(0, 255, (1, 3, -(-height // 8), -(-width // 8)))
    image = torch.nn.functional.interpolate(torch.from_numpy(coarse).float(), scale_factor=8.0, mode="bilinear")
    meta = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)}
    return {"inputs": image[0, :, :height, :width].byte(), "data_samples": DetDataSample(metainfo=meta)}


def outcome(model: Any, runtime: Runtime, packed: dict[str, Any]) -> Outcome:
    result = Outcome(Rules.of(model.test_cfg))
    kept, candidates = predict(model, packed)
    result.add("noise", kept, runtime(onnx_check.pixels(packed)), candidates, max(packed["inputs"].shape[1:]))
    return result


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
    model, runtime = Detector(find_run(VARIANT, 0), device="cpu").model, Runtime(Path("out/model.onnx"))
    for height, width in ((64, 64), (33, 97), (130, 61), (1, 40)):
        result = outcome(model, runtime, sample(height, width))
        assert result.agree > 10 and not result.differ, str(result)


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
        result = outcome(model, runtime, sample(height, width, seed))
        assert result.agree > 2 and not result.differ, str(result)


def test_an_image_without_detections_has_empty_outputs(place: Path):
    onnx_model.write(build({}, {"score_thr": 1.0}), {}, Path("model.onnx"))
    found = Runtime(Path("model.onnx"))(onnx_check.pixels(sample(64, 96)))
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
    own = Detector(find_run(VARIANT, 0), device="cpu")
    for path in sorted(TEST.glob("*.jpg"))[:3]:
        found: Any = inference_detector(detector, str(path))
        (expected,) = own([own.read(path)])
        assert found.pred_instances.bboxes.numpy() == pytest.approx(expected.box_N4, abs=1e-3)
        assert found.pred_instances.labels.tolist() == expected.label_N.tolist()


def test_mmdets_test_gives_the_ap_of_the_evaluation(place: Path, monkeypatch: pytest.MonkeyPatch):
    command(monkeypatch, "--out", "out", "--check", 0)
    with contextlib.redirect_stdout(io.StringIO()):
        cfg = Config.fromfile("out/config.py")
        cfg.log_level = "WARNING"
        metrics = Runner.from_cfg(cfg).test()
        results = place / "detections" / "seed_0" / "detections.json"
        detect(params.load(), VARIANT, 0, RUN / "model.pth", results)
        truth = COCO("data/digits/annotations/instances_test.json")
        judge = COCOeval(truth, truth.loadRes(str(results)), "bbox")
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
    with pytest.raises(
        InputError, match=r"differ in \d+ detections of 2 images and nothing is written, for example .*"
    ):
        command(monkeypatch, "--out", "out", "--check", 2)
    assert list(Path("out").iterdir()) == []


def test_an_unknown_warning_of_the_recording_is_not_hidden(place: Path, monkeypatch: pytest.MonkeyPatch):
    whole = onnx_model.Portable.forward

    def careless(self: onnx_model.Portable, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return whole(self, image if image.shape[2] > 5 else image[:, :, :5])

    monkeypatch.setattr(onnx_model.Portable, "forward", careless)
    with pytest.warns(TracerWarning, match="Converting a tensor to a Python boolean"):
        onnx_model.write(build({}, {}), {}, Path("model.onnx"))


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


def found(*rows: tuple[float, float, float, int]) -> Detections:
    """Boxes 10 pixels high, from left and width, with score and label."""
    boxes = [[left, 0.0, left + width, 10.0] for left, width, _, _ in rows]
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([score for _, _, score, _ in rows], np.float32),
        np.array([label for _, _, _, label in rows], np.int64),
    )


RULES = Rules(score=0.05, iou=0.5, most=3)
ONE = (0.0, 20.0, 0.9, 1)
LIKE = (2.0, 20.0, 0.90005, 1)  # nearly the same score, and an overlap above that of the rules


@pytest.mark.parametrize(
    ("pytorch", "onnxs", "others", "expected"),
    [
        ([ONE], [ONE], [], (1, 0, 0)),
        ([ONE], [(0.0, 20.0, 0.90005, 1)], [], (1, 0, 0)),
        ([ONE], [(0.005, 20.0, 0.9, 1)], [], (1, 0, 0)),
        ([ONE], [(0.0, 20.0, 0.9002, 1)], [], (0, 0, 2)),
        ([ONE], [(0.02, 20.0, 0.9, 1)], [], (0, 0, 2)),
        ([ONE], [(0.0, 20.0, 0.9, 2)], [], (0, 0, 2)),
        ([ONE], [], [], (0, 0, 1)),
        ([ONE, ONE], [ONE], [], (1, 0, 1)),
        ([(0.0, 20.0, 0.04, 1)], [], [], (0, 0, 0)),
        ([(0.0, 20.0, 0.05005, 1)], [], [], (0, 1, 0)),
        ([], [(0.0, 20.0, 0.05005, 1)], [], (0, 1, 0)),
        ([ONE, (10.0, 20.0, 0.5, 1)], [ONE], [], (1, 0, 1)),  # overlap 1/3: nothing suppresses it
        ([ONE, (0.0, 10.0, 0.5, 1)], [ONE], [], (1, 1, 0)),  # overlap 1/2: rounding decides
        ([ONE, (0.0, 10.0, 0.5, 2)], [ONE], [], (1, 0, 1)),  # another class
        ([ONE], [LIKE], [LIKE], (0, 2, 0)),  # each suppresses the other
        ([ONE], [LIKE], [], (0, 0, 2)),  # a box that PyTorch never had
        ([ONE], [(2.0, 20.0, 0.8, 1)], [(2.0, 20.0, 0.8, 1)], (0, 0, 2)),
        ([(40.0, 9.0, 0.3, 1)], [(60.0, 9.0, 0.4, 1), (70.0, 9.0, 0.3, 1), (80.0, 9.0, 0.29995, 1)], [], (0, 1, 3)),
    ],
)
def test_only_what_rounding_decides_is_a_near_tie(
    pytorch: list[Any], onnxs: list[Any], others: list[Any], expected: tuple[int, int, int]
):
    result = Outcome(RULES)
    result.add("image", found(*pytorch), found(*onnxs), found(*pytorch, *others), side=100)
    assert (result.agree, result.near_ties, len(result.differ)) == expected
    assert f"{expected[0]} agree" in str(result) and f"{expected[2]} differ" in str(result)
