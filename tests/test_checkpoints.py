"""Laws of other people's checkpoints: tensors are taken, nothing is executed, no name is lost unsaid."""

import logging
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import mmdet
import numpy as np
import pandas as pd
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from ghm import backbones, checkpoints, config, params, report, training
from ghm.errors import InputError
from ghm.evaluation import run as evaluation
from ghm.inspection import page

STATE = {"conv.weight": torch.arange(6.0).view(2, 3), "bn.num_batches_tracked": torch.tensor(7)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        checkpoints.read_state(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert "trust" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": {"state_dict": STATE}},
        {name: nn.Parameter(value, requires_grad=False) for name, value in STATE.items()},
    ],
)
def test_a_state_dict_is_found_in_every_usual_wrapping(tmp_path: Path, content: Any, zipped: bool):
    torch.save(content, tmp_path / "own.pth", _use_new_zipfile_serialization=zipped)
    read = checkpoints.read_state(tmp_path / "own.pth")
    assert same(read, STATE)
    assert {type(value) for value in read.values()} == {Tensor}


def openmmlab(state: dict[str, Tensor]) -> dict[str, Any]:
    """A checkpoint as mmengine writes it: logs, settings and NumPy's numbers beside the tensors."""
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    return {
        "meta": {"cfg": ConfigDict(model=ConfigDict(type="RetinaNet")), "seed": np.int64(3), "epoch": np.float64(1.5)},
        "state_dict": state,
        "message_hub": {"log_scalars": {"train/loss": history}, "runtime_info": {"where": np.arange(3)}},
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": np.float32(0.01)}]},
    }


def test_a_checkpoint_of_mmengine_is_read_without_its_classes(tmp_path: Path):
    torch.save(openmmlab(STATE), tmp_path / "zoo.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "zoo.pth", weights_only=True)
    before = set(torch.serialization.get_safe_globals())
    assert same(checkpoints.read_state(tmp_path / "zoo.pth"), STATE)
    assert set(torch.serialization.get_safe_globals()) == before


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced

    def __call__(self) -> None:
        """A pickle may call what a call gave."""


CALLS = {
    "mkdir": Call(os.mkdir, "executed"),
    "system": Call(os.system, "mkdir executed"),
    "eval": Call(eval, "__import__('os').mkdir('executed')"),
    "attribute": Call(
        Call(getattr, Call(getattr, Call(__import__, "builtins"), "__dict__"), "eval"), "open('executed', 'w')"
    ),
    "load": Call(torch.load, "other.pth", None, None),
}
PLACES = {
    "alone": lambda call: call,
    "as the state dict": lambda call: {"state_dict": call},
    "beside": lambda call: {"state_dict": STATE, "meta": {"hook": call}},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("call", CALLS)
def test_no_pickle_is_ever_executed(
    call: str, place: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    torch.save(PLACES[place](CALLS[call]), "hostile.pth", _use_new_zipfile_serialization=zipped)
    if place == "beside":
        # What lies beside the tensors may be refused or be left where it is.
        try:
            assert same(checkpoints.read_state(Path("hostile.pth")), STATE)
        except InputError:
            refused(Path("hostile.pth"))
    else:
        refused(Path("hostile.pth"))
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.pth"]


def test_these_pickles_do_execute_where_they_are_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save(PLACES["beside"](CALLS["mkdir"]), "hostile.pth")
    torch.load("hostile.pth", weights_only=False)
    assert Path("executed").is_dir()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "must hold a dict of tensors, got nothing"),
        ([torch.zeros(1)], "must hold a dict of tensors, got an object of type list"),
        (nn.Linear(2, 2), "must hold a dict of tensors, got an object of type torch.nn.modules.linear.Linear"),
        ({"epoch": 3, "weight": torch.zeros(1)}, "must hold a dict of tensors, got int under 'epoch'"),
        ({"weight": np.zeros(3)}, "numpy._core.multiarray._reconstruct under 'weight'"),
        ({"weight": torch.zeros(1).expand(10**12)}, "got Tensor under 'weight'"),
        ({"weight": torch.eye(3).to_sparse()}, "got Tensor under 'weight'"),
    ],
)
def test_what_is_no_dict_of_dense_tensors_is_refused(tmp_path: Path, content: Any, words: str):
    torch.save(content, tmp_path / "own.pth")
    assert words in refused(tmp_path / "own.pth")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path):
    path = tmp_path / "own.pth"
    torch.save(openmmlab(STATE), path)
    refused(tmp_path / "none.pth")
    whole = path.read_bytes()
    for content in (b"", b"<html>404</html>", pickle.dumps(STATE), whole[:500], whole[:-40]):
        path.write_bytes(content)
        refused(path)


@pytest.mark.parametrize("prefix", ["", "module.encoder_q."])
def test_the_names_are_found_behind_any_beginning(prefix: str):
    state = {**{prefix + name: value for name, value in STATE.items()}, f"{prefix}fc.weight": torch.zeros(1)}
    found, said = checkpoints.select(state, STATE)
    assert same(found, STATE)
    assert said == checkpoints.Report(prefix, 2, [], [f"{prefix}fc.weight"], [])
    assert str(said) == f"2 tensors loaded, 0 missing, 0 of another shape, 1 unexpected ({prefix}fc.weight)"


def test_the_beginning_with_most_names_wins_and_among_equals_the_first():
    state = {f"{prefix}.{name}": value for prefix in ("encoder_q", "encoder_k") for name, value in STATE.items()}
    state["conv.weight"] = torch.zeros(2, 3)
    found, said = checkpoints.select(state, STATE)
    assert same(found, STATE)
    assert said.prefix == "encoder_q."
    assert said.unexpected == ["conv.weight", *sorted(f"encoder_k.{name}" for name in STATE)]


def test_only_counters_of_batches_and_what_is_spare_may_be_missing():
    found, said = checkpoints.select({"conv.weight": torch.zeros(2, 2)}, {**STATE, "loss.acc_sum": torch.zeros(3)})
    assert (found, said.loaded) == ({}, 0)
    assert said.missing == ["bn.num_batches_tracked", "loss.acc_sum"]
    words = "no fit: 1 tensor missing, 1 of another shape, for example loss.acc_sum"
    with pytest.raises(InputError, match=words):
        said.require("no fit")
    said.require("no fit", spare=lambda name: name in ("loss.acc_sum", "conv.weight"))


def retinanet(parameters: params.Params, classes: int) -> Any:
    """mmdet's own `retinanet_r50_fpn`, made narrow and shallow, with weights that say something."""
    init_default_scope("mmdet")
    sizes, evaluate = parameters.model, parameters.evaluate
    model = Config.fromfile(Path(mmdet.__file__).parent / ".mim/configs/_base_/models/retinanet_r50_fpn.py").model
    model.backbone.update(depth=18, base_channels=sizes.base_channels, init_cfg=None)
    model.neck.update(
        in_channels=[sizes.base_channels * 2**stage for stage in range(4)],
        out_channels=sizes.fpn_channels,
        num_outs=sizes.levels,
    )
    model.bbox_head.update(
        num_classes=classes,
        in_channels=sizes.fpn_channels,
        stacked_convs=sizes.stacked_convs,
        feat_channels=sizes.head_channels,
    )
    model.bbox_head.anchor_generator.update(
        octave_base_scale=sizes.anchors.base_scale,
        scales_per_octave=sizes.anchors.scales_per_octave,
        ratios=list(sizes.anchors.ratios),
        strides=[8 * 2**level for level in range(sizes.levels)],
    )
    model.test_cfg.update(score_thr=evaluate.score_threshold, max_per_img=evaluate.max_per_image)
    model.test_cfg.nms.iou_threshold = evaluate.nms_iou
    torch.manual_seed(0)
    detector: Any = MODELS.build(model)
    with torch.no_grad():
        for name, value in detector.state_dict().items():
            if value.ndim == 4:
                nn.init.kaiming_normal_(value)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias")):
                value.normal_(std=0.1)
    return detector.eval()


@pytest.fixture
def parameters(workspace: Path) -> params.Params:
    """The tiny parameters with the reference's head, one variant, and a detector to start from instead of training."""
    loaded = params.load()
    return replace(
        loaded,
        variants={"ghmc_ghmr": loaded.variants["ghmc_ghmr"]},
        model=replace(loaded.model, head_norm=None, load_from="zoo-own.pth"),
        train=replace(loaded.train, epochs=0),
    )


def start_from(parameters: params.Params, state: dict[str, Tensor]) -> Path:
    """Run the stages up to training; return the folder of the run."""
    torch.save(openmmlab(state), "zoo-own.pth")
    backbones.prepare(parameters)
    training.train(parameters, "ghmc_ghmr", Path("runs/ghmc_ghmr"))
    return Path("runs/ghmc_ghmr/seed_0")


@torch.no_grad()
def predictions(detector: Any, image: Tensor) -> dict[str, Tensor]:
    sample = DetDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1.0, 1.0)))
    found = detector.test_step({"inputs": [image], "data_samples": [sample]})[0].pred_instances
    return {"boxes": found.bboxes, "scores": found.scores, "labels": found.labels}


def test_a_detector_of_mmdet_predicts_here_what_it_predicts_there(parameters: params.Params):
    theirs = retinanet(parameters, classes=10)
    run = start_from(parameters, theirs.state_dict())
    own: Any = MODELS.build(config.for_run(parameters, "ghmc_ghmr", 0).model)
    own.load_state_dict(torch.load(run / "model.pth", weights_only=True)["state_dict"])
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    expected = predictions(theirs, image)
    assert len(expected["scores"]) > 20 and expected["scores"].std() > 0.01
    for name, value in predictions(own.eval(), image).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)
    record = backbones.read_record(parameters)
    assert record["detector"]["source"] == "zoo-own.pth"
    assert sorted(path.name for path in Path("weights").iterdir()) == [record["detector"]["file"], "resnet18.json"]


def test_without_an_epoch_the_run_is_that_of_the_checkpoint_and_can_be_judged_and_reported(parameters: params.Params):
    run = start_from(parameters, retinanet(parameters, classes=10).state_dict())
    names = ["config.py", "context.json", "gradient_norms.csv", "log.csv", "model.pth", "validation.csv"]
    assert sorted(path.name for path in run.iterdir()) == names
    assert list(pd.read_csv(run / "log.csv").columns)[:3] == ["step", "epoch", "loss"]
    assert len(pd.read_csv(run / "log.csv")) == 0
    assert pd.read_csv(run / "gradient_norms.csv")["epoch"].unique().tolist() == [0]
    before = (run / "model.pth").read_bytes()
    training.train(parameters, "ghmc_ghmr", Path("runs/ghmc_ghmr"))
    assert (run / "model.pth").read_bytes() == before
    metrics = evaluation.evaluate(parameters, "ghmc_ghmr", Path("runs/ghmc_ghmr"), Path("detections/ghmc_ghmr"))
    evaluation.files.write_json(Path("metrics/ghmc_ghmr.json"), metrics)
    page.write(parameters)
    report.write(parameters, Path())
    assert "all weights from a trained detector (zoo-own.pth)" in Path("reports/built/ap_table.md").read_text()


def test_another_number_of_classes_keeps_all_but_the_layer_that_names_them(
    parameters: params.Params, caplog: pytest.LogCaptureFixture
):
    state = retinanet(parameters, classes=7).state_dict()
    with caplog.at_level(logging.INFO, "ghm"):
        run = start_from(parameters, {f"module.{name}": value for name, value in state.items()})
    own = torch.load(run / "model.pth", weights_only=True)["state_dict"]
    classes = {"bbox_head.retina_cls.weight", "bbox_head.retina_cls.bias"}
    assert {name for name in state if not torch.equal(own[name], state[name])} == classes
    assert "another number of classes: bbox_head.retina_cls.bias and bbox_head.retina_cls.weight" in caplog.text
    training.train(replace(parameters, train=replace(parameters.train, epochs=1)), "ghmc_ghmr", Path("runs/ghmc_ghmr"))
    assert np.isfinite(pd.read_csv(run / "log.csv")["loss"]).all()
    tuned = torch.load(run / "model.pth", weights_only=True)["state_dict"]
    assert not any(torch.equal(tuned[name], own[name]) for name in classes)


def test_a_detector_that_does_not_fit_is_refused(parameters: params.Params):
    state = retinanet(parameters, classes=10).state_dict()
    del state["neck.fpn_convs.0.conv.weight"]
    with pytest.raises(InputError, match="1 tensor missing, 0 of another shape, for example neck.fpn_convs.0"):
        start_from(parameters, state)
    assert not Path("runs/ghmc_ghmr").exists()
