"""Laws of `params.yaml` at the door, and of its text: what `dvc exp run -S` changes in it."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from ghm import params
from ghm.errors import InputError
from tests.conftest import ROOT, changed, comments, flat, override_file

TEXT = (ROOT / "params.yaml").read_text()
COMMITTED = YAML(typ="safe").load(TEXT)


def test_the_committed_file_is_valid_and_frozen():
    loaded = params.load(ROOT / "params.yaml")
    assert list(loaded.variants)[:3] == ["fl_sl1", "ghmc_sl1", "ghmc_ghmr"]
    with pytest.raises(AttributeError):
        loaded.train.lr = 1.0  # type: ignore[misc]


TEST_PAIR = {"annotations": "test.json", "images": "test"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.lr": "fast"}, "train.lr must be a valid number, got 'fast'"),
        ({"train.lr": float("nan")}, "train.lr must be a finite number, got nan"),
        ({"train.image_scale": [1, 2]}, "train.image_scale must be [long, short] in pixels, got [1, 2]"),
        ({"train.image_scale": 128}, "train.image_scale must be a list, got 128"),
        ({"train.schedule": "step"}, "train.lr_steps must name epochs with train.schedule: step, got []"),
        ({"train.epochs": True}, "train.epochs must be a valid integer, got True"),
        ({"train.epoch": 3}, "train.epoch is not a known key, got 3; did you mean epochs? allowed: epochs, batch_size"),
        ({"train.epochs": 0}, "train.epochs must be 1 or greater when model.load_from is null, got 0"),
        ({"data.name": "imagenet"}, "data.name must be 'digits', 'bccd', 'voc', 'coco' or 'custom', got 'imagenet'"),
        ({"model.head_channels": 40}, "model.head_channels must be a multiple of 16 with model.head_norm: GN, got 40"),
        ({"model.anchors.ratios": [1, -1]}, "model.anchors.ratios[1] must be greater than 0, got -1"),
        ({"model.norm_eval": 1}, "model.norm_eval must be true or false, got 1"),
        (
            {"custom.test": {**TEST_PAIR, "images": "../up"}},
            "custom.test.images must be a relative path without ..,",
        ),
        (
            {"custom.train": TEST_PAIR},
            "custom.train and custom.val must both be set, custom.test with them, ",
        ),
        (
            {"custom.val_share": 0.6, "custom.test_share": 0.4},
            "custom.val_share and custom.test_share must leave ",
        ),
        ({"custom.val_share": 0}, "custom.val_share must be greater than 0, got 0"),
        ({"seeds": []}, "seeds must be a list or section with at least 1 entry, got []"),
        ({"seeds": [1, 1]}, "seeds must differ from each other, got [1, 1]"),
        ({"variants.fl_sl1": "focal"}, "variants.fl_sl1 must be a section, got 'focal'"),
        ({"variants.fl_sl1.cls": "focol"}, "variants.fl_sl1.cls must be a loss section (focal, smooth_l1, ghmc,"),
        ({"variants.fl_sl1.bix": "ghmr"}, "variants.fl_sl1.bix must be a section, got 'ghmr'"),
        ({"variants.fl_sl1.ghmc": {}}, "variants.fl_sl1.ghmc is not a known key, got {}; allowed: cls, box, focal, "),
        ({"variants.fl_sl1.focal.type": "x"}, "variants.fl_sl1.focal.type cannot be overridden: name another loss"),
        ({"trian": {"epochs": 3}}, "trian.type is missing"),
        (
            {"data.name": "voc", "data.label_noise": 0.3},
            "data.label_noise must be 0 with data.name: voc, got 0.3",
        ),
        ({"data.name": "bccd", "data.box_noise": 0.2}, "data.box_noise must be 0 with data.name: bccd, got 0.2"),
        (
            {"data.root": "a", "data.box_noise": 1},
            "data.box_noise must be 0 with digits that lie in data.root (a), got",
        ),
        ({"data.box_noise": 30}, "data.box_noise must be less than or equal to 1, got 30"),
        ({"data.name": "coco"}, "evaluate.split must be val with data.name: coco, got 'test'"),
        ({"model.pretrained": None, "model.frozen_stages": 1}, "model.frozen_stages must be -1 when model.pretrained"),
        ({"model.pretrained_sha256": "0123456789"}, "model.pretrained_sha256 must be null without a file to check"),
        ({"model.backbone": "resnext101_32x4d"}, "model.base_channels must be 64 with model.backbone: resnext101_32"),
        ({"model.load_from": "a", "train.resume_from": "b"}, "train.resume_from must be null when model.load_from is"),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_remedy(changes: dict[str, Any], words: str):
    with pytest.raises(InputError) as caught:
        params.parse(changed(COMMITTED, changes))
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_named_at_once_a_line_each():
    content = changed(COMMITTED, {"train.lr": -1, "train.workers": 4, "variants.fl_sl1.box": 5, "trian": {}})
    del content["digits"]["seed"], content["custom"]
    with pytest.raises(InputError) as caught:
        params.parse(content)
    assert sorted(line.split(",")[0] for line in str(caught.value).splitlines()) == [
        "custom is missing",
        "digits.seed is missing",
        "train.lr must be greater than 0",
        "train.workers is not a known key",
        "trian.type is missing",
        "variants.fl_sl1.box must be a text",
    ]
    changes = {"data.label_noise": 0.3, "data.name": "coco", "data.root": "a", "data.source": "b"}
    with pytest.raises(InputError) as caught:
        params.parse(changed(COMMITTED, {**changes, "model.head_channels": 40}))
    assert len(str(caught.value).splitlines()) == 3


def test_a_third_pair_of_a_custom_data_set_can_be_reported_on():
    pairs = {"custom.train": TEST_PAIR, "custom.val": TEST_PAIR, "data.name": "custom"}
    assert params.parse(changed(COMMITTED, {**pairs, "evaluate.split": "val"})).splits() == ("val",)
    assert params.parse(changed(COMMITTED, {**pairs, "custom.test": TEST_PAIR})).splits() == ("val", "test")


def test_a_folder_whose_layout_is_recognised_has_splits_for_choosing_and_for_reporting():
    assert params.parse(changed(COMMITTED, {"data.name": "custom"})).splits() == ("val", "test")


def test_a_variant_gives_a_loss_other_arguments_than_its_section():
    loaded = params.load(ROOT / "params.yaml")
    section = loaded.losses["ghmc"]
    assert loaded.loss("ghmc_sl1", "cls") == section
    arguments = {**section.arguments, "smoothing": "positives"}
    assert loaded.loss("ghmc_smooth", "cls") == params.Loss(section.type, arguments)
    assert loaded.loss("ghmc_smooth", "box") == loaded.losses["smooth_l1"]
    keys = [loaded.loss_key("ghmc_smooth", "cls", name) for name in ("bins", "smoothing")]
    assert keys == ["ghmc.bins", "variants.ghmc_smooth.ghmc.smoothing"]


def test_parameters_are_read_without_torch_and_mmdet():
    code = "import sys; from ghm import params; params.load(); print({'torch', 'mmengine', 'mmdet'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [1, 2", "is not valid YAML (line"), ("a: 1\na: 2", "is not valid YAML"), ("- 1", "must hold sections")],
)
def test_a_malformed_file_is_refused_in_one_sentence(tmp_path: Path, text: str, words: str):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        params.load(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)
HOSTILE = (
    *("variants", "variants.ghmc_smooth", "variants.ghmc_smooth.ghmc", "seeds", "train", "train.lr", "train.lr_steps"),
    *("model.anchors", "model.backbone", "ghmc", "ghmc.type", "ghmc.bins", "data.root", "custom.val", "losses"),
)


@given(key=st.sampled_from(HOSTILE), value=VALUES)
def test_no_value_whatever_ends_in_anything_but_params_or_an_input_error(key: str, value: object):
    with contextlib.suppress(InputError):
        params.parse(changed(COMMITTED, {key: value}))


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + (7 if isinstance(value, int) else 0.5)
    if isinstance(value, list):
        return [*value, 3]
    return "text" if value is None else "other"


@pytest.fixture
def override(tmp_path: Path) -> Any:
    """`dvc exp run -S key=value ...` on a text of params.yaml: nothing else may change, and no comment."""
    path = tmp_path / "params.yaml"

    def apply(text: str, values: dict[str, Any]) -> str:
        path.write_text(text)
        override_file(path, values)
        after = path.read_text()
        assert YAML(typ="safe").load(after) == changed(YAML(typ="safe").load(text), values)
        assert comments(after) == comments(text)
        return after

    return apply


def test_values_that_change_go_back_to_the_same_bytes(override: Any):
    before = flat(COMMITTED)
    assert override(TEXT, before) == TEXT
    text = override(TEXT, {key: other(value) for key, value in before.items()})
    assert override(text, before) == TEXT


@pytest.mark.parametrize(
    ("key", "value"), [("seeds", []), ("train.lr_steps", [5, 6]), ("seeds", None), ("custom.test", TEST_PAIR)]
)
def test_a_list_or_null_takes_another_value_and_goes_back_to_the_same_bytes(override: Any, key: str, value: object):
    assert override(override(TEXT, {key: value}), {key: flat(COMMITTED)[key]}) == TEXT
