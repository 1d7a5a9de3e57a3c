"""Laws of presets: one command, comments kept, the difference shown, nothing written when the result is wrong."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from ghm import params, presets
from ghm.errors import InputError
from tests.conftest import ROOT, changed, comments, flat, override_file

NAMES = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
OVERRIDES: dict[str, Any] = {  # valid with all presets
    "ghmc.bins": 10,
    "variants.ghmc_smooth.ghmc.smoothing": 50.0,
    "seeds": [0, 1, 2],
    "train.image_scale": [96, 64],
    "model.anchors.ratios": [2.0],
    "train.grad_clip": None,
    "train.lr": 0.003,
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text() -> str:
    return Path("params.yaml").read_text()


def read() -> dict[str, Any]:
    return YAML(typ="safe").load(text())


def preset(name: str) -> dict[str, Any]:
    content = YAML(typ="safe").load(ROOT / "presets" / f"{name}.yaml")
    base = content.pop("_base_", None)
    return (preset(base) if base else {}) | flat(content)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_gives_valid_parameters_shows_them_and_keeps_every_comment(name: str):
    before = comments(text())
    difference = presets.apply(name)
    after = text()
    params.load()
    assert comments(after) == before
    shown = [line[1:] for line in difference.splitlines() if line.startswith("+ ")]
    assert shown and set(shown) <= {line.rstrip() for line in after.splitlines()}
    assert presets.apply(name) == ""
    assert text() == after


def test_a_preset_means_the_same_whatever_presets_came_before():
    fresh = text()

    def result(name: str) -> tuple[object, ...]:
        presets.apply(name)
        loaded = params.load()
        return loaded.data, loaded.model, loaded.train, loaded.evaluate

    alone = {}
    for name in NAMES:
        Path("params.yaml").write_text(fresh)
        alone[name] = result(name)
    for name in (*NAMES, *reversed(NAMES)):
        if name != "tiny":  # the smallest run of whatever is set
            assert result(name) == alone[name], name


@pytest.mark.parametrize("name", NAMES)
def test_presets_and_overrides_in_any_order_mean_what_they_should(name: str):
    before = read()
    override_file(Path("params.yaml"), OVERRIDES)
    presets.apply(name)
    assert read() == changed(before, OVERRIDES | preset(name))
    override_file(Path("params.yaml"), OVERRIDES)
    assert read() == changed(before, preset(name) | OVERRIDES)
    params.load()


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_leaves_the_form_that_dvc_leaves(name: str):
    fresh = text()
    presets.apply(name)
    after = text()
    override_file(Path("params.yaml"), {"ghmc.bins": 30})
    assert text() == after
    Path("params.yaml").write_text(fresh)
    override_file(Path("params.yaml"), preset(name))
    assert text() == after


def test_a_folder_that_is_named_is_where_the_data_lie(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "your data").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for named in ("your data", "~/your data", str(folder / "your data")):
        presets.apply("bccd_r18")
        presets.apply("own_cpu", named)
        assert (read()["data"]["name"], read()["data"]["root"]) == ("custom", str(folder / "your data"))
    assert presets.apply("own_cpu", "your data") == "" == presets.apply("own_cpu")
    presets.apply("own_cpu", "your data", "voc")
    assert read()["custom"]["layout"] == "voc"
    presets.apply("own_cpu", "your data")
    assert read()["custom"]["layout"] is None
    before = text()
    with pytest.raises(InputError, match="DATA must be an existing folder with your data set, got 'none'"):
        presets.apply("own_gpu", "none")
    assert text() == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("train: {lr: -1}", r"train\.lr must be greater than 0, got -1"),
        ("ghmc: {momentum: 1.5}", r"ghmc\.momentum must be in \[0, 1\), got 1\.5"),
        ("_base_: coco", "the preset must be one of bccd_r18, coco_r101_1x, .*got 'coco'"),
    ],
)
def test_a_wrong_preset_is_refused_and_nothing_is_written(folder: Path, content: str, words: str):
    before = text()
    (folder / "presets" / "wrong.yaml").write_text(content)
    with pytest.raises(InputError, match=words):
        presets.apply("wrong")
    assert text() == before
    assert sorted(path.name for path in folder.iterdir()) == ["params.yaml", "presets"]


def test_a_file_that_would_come_out_broken_is_refused_and_left_as_it_was():
    presets.apply("coco_r50_1x")
    Path("params.yaml").write_text(text().replace("  lr_steps:\n", "  lr_steps:  # by hand\n"))
    before = text()
    with pytest.raises(InputError, match=r"comments that stand beside a list.*; nothing was changed") as caught:
        presets.apply("bccd_r18")
    assert "\n" not in str(caught.value)
    assert text() == before
