"""Laws of `params.yaml` at the door."""

import contextlib
import copy
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from ghm import params
from ghm.errors import InputError

ROOT = Path(__file__).parents[1]


TEXT = (ROOT / "params.yaml").read_text()
COMMITTED = YAML(typ="safe").load(TEXT)


def raw() -> dict[str, Any]:
    return copy.deepcopy(COMMITTED)


def change(key: str, value: object) -> dict[str, Any]:
    content = raw()
    *path, last = key.split(".")
    section = content
    for part in path:
        section = section[part]
    section[last] = value
    return content


def test_the_committed_file_is_valid_and_frozen():
    loaded = params.load(ROOT / "params.yaml")
    assert list(loaded.variants)[:3] == ["fl_sl1", "ghmc_sl1", "ghmc_ghmr"]
    with pytest.raises(AttributeError):
        loaded.train.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.lr", "fast", "train.lr must be a number, got 'fast'"),
        ("train.lr", float("nan"), "train.lr must be a finite number, got nan"),
        ("train.image_scale", [1, 2], "train.image_scale must be [long, short] in pixels, got [1, 2]"),
        ("train.image_scale", 128, "train.image_scale must be a list, got 128"),
        ("train.lr_steps", [8], "train.lr_steps must be [] with train.schedule: cosine, got [8]"),
        ("train.schedule", "step", "train.lr_steps must name epochs with train.schedule: step, got []"),
        ("train.epochs", True, "train.epochs must be a whole number, got True"),
        ("train.epochs", 2.5, "train.epochs must be a whole number, got 2.5"),
        ("train.epoch", 3, "train.epoch is not a known key, got 3; did you mean epochs? allowed: epochs, batch_size"),
        ("machine.workers", -1, "machine.workers must be 0 or greater, got -1"),
        ("data.name", "imagenet", "data.name must be one of digits, bccd, voc, coco, custom, got 'imagenet'"),
        ("data.label_noise", 1.5, "data.label_noise must be 1 or less, got 1.5"),
        ("model.backbone", "resnet19", "model.backbone must be one of resnet18, resnet34, "),
        ("model.head_norm", "LN", "model.head_norm must be one of GN, BN, got 'LN'"),
        ("model.head_channels", 40, "model.head_channels must be a multiple of 16 with model.head_norm: GN, got 40"),
        ("model.anchors.ratios", [1.0, -1], "model.anchors.ratios[1] must be greater than 0, got -1"),
        ("model.norm_eval", 1, "model.norm_eval must be true or false, got 1"),
        ("data.test2017", True, "data.test2017 must be false with data.name: digits, got true"),
        ("machine.check_images", 5, "machine.check_images must be one of none, sample, all, got 5"),
        ("custom.train.images", "../up", "custom.train.images must be a relative path without .., got '../up'"),
        ("custom.val.annotations", "/a", "custom.val.annotations must be a relative path without .., got '/a'"),
        ("custom.val", None, "custom.val must be a section with annotations, images, got None"),
        ("train.base_batch_size", 0, "train.base_batch_size must be 1 or greater, got 0"),
        ("train.epochs", 0, "train.epochs must be 1 or greater when model.load_from is null, got 0"),
        ("seeds", [], "seeds must be a list or section with at least 1 entry, got []"),
        ("seeds", [1, 1], "seeds must differ from each other, got [1, 1]"),
        ("variants", {}, "variants must be a list or section with at least 1 entry, got {}"),
        (
            "variants.fl_sl1",
            "focal",
            "variants.fl_sl1 must be a section with cls, box, one of",
        ),
        ("variants.fl_sl1.cls", "focol", "variants.fl_sl1.cls must be a loss section"),
        ("train.workers", 4, "train.workers is not a known key, got 4: train.workers is now machine.workers"),
        ("data.check_images", "all", "got 'all': data.check_images is now machine.check_images"),
        ("machine.trackers", ["dvclive"], "machine.trackers[0] must be one of tensorboard, got 'dvclive'"),
        ("variants.fl_sl1.bix", "ghmr", "variants.fl_sl1.bix is not a known key, got 'ghmr'; did you mean box?"),
        (
            "variants.fl_sl1.ghmc",
            {"bins": 1},
            "variants.fl_sl1.ghmc is not a known key, got {'bins': 1}; allowed: cls",
        ),
        ("variants.fl_sl1.focal", {"type": "x"}, "variants.fl_sl1.focal.type cannot be overridden: name another loss"),
        ("variants.fl_sl1.overrides", 1, "variants.fl_sl1.overrides must be a section, got 1"),
        ("focal.type", 1, "focal.type must be a text, got 1"),
        ("focal", {"gamma": 2.0}, "focal is not a known key, got {'gamma': 2.0}; allowed: variants, seeds, data,"),
        ("losses", {"focal": 1}, "losses.focal is not a known key"),
        ("trian", {"epochs": 3}, "trian is not a known key, got {'epochs': 3}; did you mean train? allowed: variants,"),
        ("train", None, "train must be a section with epochs"),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_remedy(key: str, value: object, words: str):
    with pytest.raises(InputError) as caught:
        params.parse(change(key, value))
    assert words in str(caught.value)


def test_all_mistakes_are_named_at_once_a_line_each():
    content = raw()
    content["train"] |= {"lr": -1, "workers": 4}
    del content["digits"]["seed"], content["custom"]
    content["variants"]["fl_sl1"]["box"] = 5
    content["trian"] = {}
    with pytest.raises(InputError) as caught:
        params.parse(content)
    assert sorted(line.split(",")[0] for line in str(caught.value).splitlines()) == [
        "custom is missing",
        "digits.seed is missing",
        "train.lr must be greater than 0",
        "train.workers is not a known key",
        "trian is not a known key",
        "variants.fl_sl1.box must be a text",
    ]
    content = raw()
    content["data"] |= {"name": "coco", "label_noise": 0.3, "root": "a", "source": "b"}
    content["model"]["head_channels"] = 40
    with pytest.raises(InputError) as caught:
        params.parse(content)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "coco", "label_noise": 0.3}, "data.label_noise must be 0 with data.name: coco, got 0.3"),
        ({"root": "a", "source": "b"}, "data.root and data.source cannot both be set, got 'a' and 'b'"),
        ({"name": "coco"}, "evaluate.split must be val with data.name: coco, got 'test'"),
        ({"name": "custom"}, "evaluate.split must be val with data.name: custom, got 'test'"),
    ],
)
def test_values_that_do_not_go_together_are_refused(changes: dict[str, Any], words: str):
    content = raw()
    content["data"] |= changes
    with pytest.raises(InputError) as caught:
        params.parse(content)
    assert str(caught.value) == words


def test_a_third_pair_of_ones_own_can_be_reported_on():
    content = change("custom.test", {"annotations": "test.json", "images": "test"})
    content["data"]["name"] = "custom"
    assert params.parse(content).splits() == ("val", "test")


def test_a_variant_is_one_line_and_so_is_a_loss_section():
    content = raw()
    content["variants"]["fl_giou"] = {"cls": "focal", "box": "giou"}
    content["giou"] = {"type": "GIoULoss", "loss_weight": 2.0}
    loaded = params.parse(content)
    assert loaded.losses["giou"] == params.Loss("GIoULoss", {"loss_weight": 2.0})
    assert loaded.variant("fl_giou") == params.Variant("focal", "giou")


def test_a_variant_gives_a_loss_other_arguments_than_its_section():
    loaded = params.load(ROOT / "params.yaml")
    section = loaded.losses["ghmc"]
    assert loaded.loss("ghmc_sl1", "cls") == section
    assert loaded.loss("ghmc_smooth", "cls") == params.Loss(section.type, {**section.arguments, "smoothing": 100.0})
    assert loaded.loss("ghmc_smooth", "box") == loaded.losses["smooth_l1"]
    keys = [loaded.loss_key("ghmc_smooth", "cls", name) for name in ("bins", "smoothing")]
    assert keys == ["ghmc.bins", "variants.ghmc_smooth.ghmc.smoothing"]


def test_parameters_are_read_without_torch_and_mmdet():
    code = "import sys; from ghm import params; params.load(); print({'torch', 'mmengine', 'mmdet'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_an_unknown_variant_is_answered_with_those_there_are():
    with pytest.raises(InputError, match="must be one of fl_sl1, ghmc_sl1, ghmc_ghmr.*got 'fl'"):
        params.parse(raw()).variant("fl")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1, 2", "is not valid YAML (line"),
        ("a: 1\na: 2", "is not valid YAML"),
        ("- 1", "must hold sections"),
        ("", "must hold sections"),
    ],
)
def test_a_malformed_file_is_refused_in_one_sentence(tmp_path: Path, text: str, words: str):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        params.load(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="is missing"):
        params.load(tmp_path / "params.yaml")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
HOSTILE = (
    *("variants", "variants.ghmc_smooth", "variants.ghmc_smooth.ghmc", "seeds", "train", "train.lr", "train.lr_steps"),
    *("model.anchors", "model.backbone", "ghmc", "ghmc.type", "ghmc.bins", "data.root", "custom.val.images", "losses"),
)


@given(key=st.sampled_from(HOSTILE), value=values)
def test_no_value_whatever_ends_in_anything_but_params_or_an_input_error(key: str, value: object):
    with contextlib.suppress(InputError):
        params.parse(change(key, value))


def keys(content: Mapping[str, Any] = COMMITTED, place: str = "") -> Iterator[str]:
    """The dotted names of all values that are no sections."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from keys(value, f"{place}{name}.")
        else:
            yield f"{place}{name}"


def value_of(content: Any, key: str) -> Any:
    for name in key.split("."):
        content = content[name]
    return content


def word(value: object) -> str:
    """A value as people type it after `-S key=`."""
    if isinstance(value, list):
        return f"[{','.join(map(word, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}: {word(item)}" for name, item in value.items()) + "}"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + (7 if isinstance(value, int) else 0.5)
    if isinstance(value, list):
        return [*value, 3]
    return "text" if value is None else "other"


def comments(text: str) -> list[str]:
    return [line.split("#", 1)[1].strip() for line in text.splitlines() if "#" in line]


@pytest.fixture
def override(tmp_path: Path) -> Any:
    """`dvc exp run -S key=value ...` with a text in the place of params.yaml."""
    path = tmp_path / "params.yaml"

    def apply(text: str, values: dict[str, Any]) -> str:
        path.write_text(text)
        apply_overrides(path, [f"{key}={word(value)}" for key, value in values.items()])
        return path.read_text()

    return apply


def require_only(before: str, after: str, key: str, value: object) -> None:
    """`after` is `before` with another value of `key`, and has all its comments."""
    meant = YAML(typ="safe").load(before)
    *path, last = key.split(".")
    (value_of(meant, ".".join(path)) if path else meant)[last] = value
    assert YAML(typ="safe").load(after) == meant, key
    assert comments(after) == comments(before), key


def test_a_value_set_to_what_it_is_leaves_the_file_byte_for_byte(override: Any):
    assert override(TEXT, {key: value_of(COMMITTED, key) for key in keys()}) == TEXT


def test_values_changed_one_after_the_other_change_their_own_lines_and_go_back_to_the_same_bytes(override: Any):
    before = TEXT
    for key in keys():
        value = other(value_of(COMMITTED, key))
        after = override(before, {key: value})
        require_only(before, after, key, value)
        before = after
    assert override(before, {key: value_of(COMMITTED, key) for key in keys()}) == TEXT


CHANGES = [
    *(
        (key, value)
        for key in ("seeds", "train.lr_steps", "model.anchors.ratios")
        for value in ([], [5, 6, 7, 8], None)
    ),
    ("custom.test", {"annotations": "annotations/test.json", "images": "test"}),
]


@pytest.mark.parametrize(("key", "value"), CHANGES, ids=word)
def test_a_list_or_null_takes_another_value_and_goes_back_to_the_same_bytes(override: Any, key: str, value: object):
    changed = override(TEXT, {key: value})
    require_only(TEXT, changed, key, value)
    assert override(changed, {key: value_of(COMMITTED, key)}) == TEXT
