"""Laws of the suggestion: never worse, within its limits, silent where the anchors fit, and applied by one command."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from ghm import data, fit, params
from ghm.data import annotations
from ghm.data.annotations import Annotations
from ghm.errors import InputError
from ghm.inspection import search
from ghm.inspection.anchors import Boxes, Setting, missed, used
from ghm.params import Anchors
from stages import data as stage
from tests.conftest import ROOT, comments, override_file
from tests.inspection.conftest import drawn, write_set

DEFAULT = Setting(Anchors(3.0, 2, (1.0, 2.0)), 3, (128, 128))


@pytest.mark.parametrize("side", [5.0, 20.0, 60.0, 200.0, 450.0])
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_a_suggestion_leaves_fewer_boxes_and_few_where_that_can_be(side: float, spread: float):
    boxes = drawn(600, side, spread=spread)
    found = search.judge(boxes, DEFAULT)
    assert found.missed == missed(boxes, DEFAULT)
    if found.missed <= search.WARNED:
        assert found.suggested is None and not found.is_bad
        return
    assert found.suggested
    assert found.left == missed(boxes, found.suggested) < found.missed
    best = min(share for share, _ in search._settings(boxes.resized((640, 640)), DEFAULT))
    assert found.left < search.WANTED or best >= search.WANTED
    assert found.times == pytest.approx((found.suggested.image_scale[0] / 128) ** 2, rel=0.02)


def test_every_share_of_the_search_is_that_of_its_setting():
    boxes = drawn(300, 30.0, spread=0.7)
    for number, (share, setting) in enumerate(search._settings(boxes.resized(DEFAULT.image_scale), DEFAULT)):
        if number % 37 == 0:
            assert share == pytest.approx(missed(boxes, setting), abs=1e-9), setting


def test_what_needs_one_change_gets_one():
    found = search.judge(drawn(600, 250.0, spread=0.2), DEFAULT)  # 50 pixels of 128
    assert not found.is_bad
    wide = drawn(600, 60.0, spread=0.05, image=(128, 128))
    wide = Boxes(wide.corner_N4 * np.array([1, 0.25, 1, 0.25]), wide.image_N2)
    found = search.judge(wide, DEFAULT)
    assert found.suggested and found.suggested.anchors.ratios != (1.0, 2.0)
    assert {**found.suggested.values(), "model.anchors.ratios": None} == {
        **DEFAULT.values(),
        "model.anchors.ratios": None,
    }
    assert "times the pixels" not in found.sentence()


def test_images_grow_no_larger_than_they_are_or_than_was_asked():
    boxes = drawn(400, 9.0)
    for largest, most in ((None, 640), (320, 320), (8, 128)):
        scales = search.image_scales(boxes, (128, 128), largest)
        assert scales[0] == (128, 128) and scales[-1][0] == most and scales == sorted(scales)
        found = search.judge(boxes, DEFAULT, largest)
        assert found.suggested is None or found.suggested.image_scale[0] <= most
    assert search.image_scales(boxes, (160, 96))[-1] == (640, 384)


def test_boxes_for_which_nothing_fits_are_said_to_be_too_small():
    found = search.judge(drawn(200, 1.0, spread=0.01, image=(128, 128)), DEFAULT)
    assert found.is_bad and found.suggested is None
    assert "most of these boxes are too small" in found.sentence()


def test_chess_pieces_at_128_pixels_are_warned_of_and_digits_are_not(chess: Path):
    content = annotations.read(chess / "train" / "_annotations.coco.json", Annotations)
    found = search.judge(used(content), DEFAULT)
    assert found.missed > 0.99 and found.left < 0.05
    assert "`make fit` sets" in found.sentence() and "train.image_scale [320, 320] (now [128, 128])" in found.sentence()


def test_the_stage_data_warns_of_what_does_not_fit_and_only_of_that(workspace: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    override_file(Path("params.yaml"), {"train.image_scale": [128, 128]})
    stage.main()
    assert "no anchor" not in caplog.text
    override_file(Path("params.yaml"), write_set(workspace / "own", 8, ["a"], size=(640, 480)))
    stage.main()
    warnings = [record.getMessage() for record in caplog.records if "no anchor" in record.getMessage()]
    assert len(warnings) == 1 and "100 % of the training boxes have no anchor" in warnings[0]


def test_fit_writes_what_it_says_keeps_comments_and_has_nothing_to_do_again(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    override_file(Path("params.yaml"), write_set(workspace / "own", 8, ["a"], size=(640, 480)))
    data.prepare(params.load())
    before = Path("params.yaml").read_text()
    suggested = search.of_training_split(params.load()).suggested
    monkeypatch.setattr(sys, "argv", ["fit"])
    fit.main()
    after = Path("params.yaml").read_text()
    assert Setting.of(params.load()) == suggested
    assert comments(after) == comments(before)
    printed = capsys.readouterr().out
    assert "100 % of the training boxes" in printed and "+  - " in printed
    fit.main()
    assert Path("params.yaml").read_text() == after
    assert capsys.readouterr().out.startswith("The anchors fit: ")
    override_file(Path("params.yaml"), {"ghmc.bins": 30})  # as DVC writes it
    assert Path("params.yaml").read_text() == after


def test_fit_without_prepared_data_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    with pytest.raises(InputError, match=r"data/digits\.json is missing: run `dvc repro data`"):
        search.of_training_split(params.load())
