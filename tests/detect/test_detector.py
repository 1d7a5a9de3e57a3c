"""Laws of detectors from files: what they are told, what they say of themselves, and what does not fit."""

import re
from pathlib import Path

import pytest
import torch

from ghm.detect.detector import Detector, find_run
from ghm.errors import InputError
from tests.detect.conftest import TEST, Command, foreign, words_for
from tests.trained import RUN, VARIANT

CONFIG, MODEL = RUN / "config.py", RUN / "model.pth"


@pytest.mark.parametrize("tf32", [False, True])
def test_cuda_rounds_to_tf32_where_the_run_says_so_and_nowhere_else(
    place: Path, monkeypatch: pytest.MonkeyPatch, tf32: bool
):
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
        monkeypatch.setattr(backend, "allow_tf32", not tf32)
    CONFIG.write_text(re.sub(r"tf32=\w+", f"tf32={tf32}", CONFIG.read_text()))
    Detector.open(*find_run(VARIANT, 0))
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is tf32


def test_categories_have_the_ids_of_the_data_set(place: Path, command: Command):
    """Ids in no order, from 0, as exports have them."""
    expected = command(TEST, "--score", 0, "--no-pictures")["annotations"]
    ids = [0, 7, 3, 40, 12, 5, 99, 1, 2, 2**40]
    model = torch.load(MODEL, weights_only=True)
    model["meta"]["dataset_meta"]["category_ids"] = ids
    torch.save(model, MODEL)
    content = command(TEST, "--score", 0, "--no-pictures")
    assert [(entry["id"], entry["name"]) for entry in content["categories"]] == list(
        zip(ids, "0123456789", strict=True)
    )
    # Those of the digits are 1 to 10.
    assert content["annotations"] == [{**box, "category_id": ids[box["category_id"] - 1]} for box in expected]


def test_classes_are_named_by_the_checkpoint_then_the_config_then_by_numbers(place: Path):
    names, numbers = tuple("abcdefghij"), list("0123456789")
    for ids in (None, [1, 2], [1] * 10, list("abcdefghij"), 5):  # that do not fit
        detector = Detector.open(*foreign(meta={"dataset_meta": {"classes": names, "category_ids": ids}}))
        assert (detector.classes, detector.category_ids) == (list(names), list(range(1, 11)))
    assert Detector.open(*foreign(meta={"CLASSES": names})).classes == list(names)
    assert Detector.open(*foreign(meta={"CLASSES": names[:3]})).classes == numbers  # of another model
    assert Detector.open(*foreign(meta="text", config={"'7'": "'seven'"})).classes[7] == "seven"
    assert Detector.open(*foreign(config={"metainfo=": "note="})).classes == numbers


def test_another_detector_finds_what_its_files_say_also_below_its_own_threshold(photos: Path, command: Command):
    own = command(photos, "--score", 0, "--no-pictures")
    source = foreign(meta={"CLASSES": tuple("abcdefghij")}, config={"score_thr=0.0": "score_thr=0.99"})
    other = command(photos, *words_for(source), "--score", 0, "--no-pictures", variant=None)
    assert own["annotations"] == other["annotations"] != [] and own["images"] == other["images"]
    assert [category["name"] for category in other["categories"]] == list("abcdefghij")


@pytest.mark.parametrize(
    ("config", "checkpoint", "sentence"),
    [
        ("c.py", MODEL, "c.py is no config that mmengine can read: FileNotFoundError"),
        ("params.yaml", MODEL, "params.yaml has no `test_dataloader`: name the config of a detector of mmdet 3"),
        ("notes.txt", MODEL, "notes.txt is no config that mmengine can read"),
        (CONFIG, "m.pth", "m.pth cannot be read: No such file"),
        (CONFIG, CONFIG, "is no checkpoint that can be read safely"),
    ],
)
def test_a_file_that_is_no_detector_is_named(place: Path, config: Path, checkpoint: Path, sentence: str):
    Path("notes.txt").write_text("no config")
    with pytest.raises(InputError, match=sentence):
        Detector.open(Path(config), Path(checkpoint))


def test_a_checkpoint_that_does_not_fit_its_config_is_refused(place: Path):
    with pytest.raises(InputError, match="foreign.pth does not fit foreign.py: .* of another shape"):
        Detector.open(*foreign(config={"num_classes=10": "num_classes=3"}))
    with pytest.raises(InputError, match="describes no model that mmdet can build: .*Retina"):
        Detector.open(*foreign(config={"type='RetinaNet'": "type='RetinaNot'"}))
