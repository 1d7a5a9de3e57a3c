"""Laws of presets: one command, comments kept, the difference shown, nothing written when the result is wrong."""

from pathlib import Path

import pytest

from ghm import params, presets
from ghm.errors import InputError

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "presets").mkdir()
    for path in (ROOT / "presets").glob("*.yaml"):
        (tmp_path / "presets" / path.name).write_text(path.read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def comments(text: str) -> list[str]:
    return [line.split("#", 1)[1].strip() for line in text.splitlines() if "#" in line]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_gives_valid_parameters_and_keeps_every_comment(name: str, place: Path):
    before = (place / "params.yaml").read_text()
    difference = presets.apply(name)
    after = (place / "params.yaml").read_text()
    params.load()
    assert comments(after) == comments(before)
    changed = [line for line in difference.splitlines() if line.startswith("+ ")]
    assert changed
    assert all(line[1:] in {other.rstrip() for other in after.splitlines()} for line in changed)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_applied_twice_changes_nothing_more(name: str):
    presets.apply(name)
    assert presets.apply(name) == ""


def test_a_preset_means_the_same_whatever_presets_came_before(place: Path):
    fresh = (place / "params.yaml").read_text()

    def result(name: str) -> tuple[object, ...]:
        presets.apply(name)
        loaded = params.load()
        return loaded.data, loaded.model, loaded.train, loaded.evaluate

    alone = {}
    for name in NAMES:
        (place / "params.yaml").write_text(fresh)
        alone[name] = result(name)
    for name in (*NAMES, *reversed(NAMES)):
        if name != "tiny":  # the smallest run of whatever is set
            assert result(name) == alone[name], name


def test_a_preset_on_top_of_another_holds_its_own_values_and_the_others():
    presets.apply("coco_r50_1x")
    base = params.load()
    presets.apply("coco_x101_64x4d_1x")
    built_on = params.load()
    assert (built_on.model.backbone, built_on.model.pretrained) == ("resnext101_64x4d", "openmmlab")
    assert (built_on.train, built_on.data, built_on.evaluate) == (base.train, base.data, base.evaluate)


def test_an_empty_preset_leaves_the_file_as_it_was(place: Path):
    before = (place / "params.yaml").read_text()
    (place / "presets" / "same.yaml").write_text("seeds: [0]\n")
    assert presets.apply("same") == ""
    assert (place / "params.yaml").read_text() == before


def test_a_wrong_preset_is_refused_and_nothing_is_written(place: Path):
    before = (place / "params.yaml").read_text()
    (place / "presets" / "wrong.yaml").write_text("ghmc: {bins: -1}\n")
    with pytest.raises(InputError, match=r"ghmc\.bins must be 1 or greater, got -1"):
        presets.apply("wrong")
    with pytest.raises(InputError, match="the preset must be one of bccd_r18, coco_r101_1x, .*got 'coco'"):
        presets.apply("coco")
    assert (place / "params.yaml").read_text() == before
