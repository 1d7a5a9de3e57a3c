"""Laws of annotation files and manifests."""

import json
from pathlib import Path
from typing import Any

import pytest

from ghm.data import annotations
from ghm.data.annotations import Annotations
from ghm.errors import InputError
from tests.data.conftest import SPLITS, content, describe, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in SPLITS:
        write(tmp_path / "copy", split, content(split))
    return tmp_path / "copy"


def without(section: str, key: str) -> dict[str, Any]:
    file = content()
    del file[section][1][key]
    return file


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("[]", "Expected `object`, got `array`"),
        (json.dumps({**content(), "images": []}), "holds no images: there is nothing"),
        (json.dumps({**content(), "categories": []}), "holds no categories"),
        (json.dumps({**content(), "images": [{"id": "a"}]}), "Expected `int`, got `str` - at `$.images[0].id`"),
        (json.dumps({**content(), "images": [{"id": 2**63}]}), "Expected `int` <= 9223372036854775807 - at `$.images"),
        (json.dumps(without("annotations", "bbox")), "missing required field `bbox` - at `$.annotations[1]`"),
        (json.dumps({**content(), "info": float("nan"), "images": [1]}), "got `int` - at `$.images[0]`"),
    ],
)
def test_a_bad_annotation_file_is_refused_in_one_sentence(tmp_path: Path, text: str, words: str):
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        annotations.read(path, Annotations)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_annotation_file_and_a_missing_image_folder_are_named(root: Path):
    (root / "val").rename(root / "elsewhere")
    with pytest.raises(InputError, match=r"the image folder .*val is missing"):
        describe(root)
    (root / "annotations" / "train.json").unlink()
    with pytest.raises(InputError, match=r"train\.json cannot be read: No such file"):
        describe(root)


def test_classes_keep_the_order_of_the_file_as_mmdet_numbers_them(root: Path):
    result = describe(root)
    assert result["classes"] == ["seven", "three"]
    assert result["category_ids"] == [7, 3]
    train = result["splits"]["train"]
    assert (train["images"], train["boxes"], train["images_without_boxes"]) == (2, 3, 0)
    assert train["boxes_per_class"] == {"seven": 2, "three": 1}
    assert train["boxes_per_size"] == {"small": 1, "medium": 2, "large": 0}
    assert train["warnings"] == {} and train["unreadable"] == []
    assert str(root) not in json.dumps(result)  # no path of the machine


def test_splits_must_agree_in_their_classes(root: Path):
    other = content("val")
    other["categories"][0]["name"] = "siete"
    write(root, "val", other)
    with pytest.raises(InputError, match=r"val\.json: its classes must be those of train, .*: 'seven', 'siete'"):
        describe(root)
    other["categories"] = content()["categories"][::-1]
    write(root, "val", other)
    with pytest.raises(InputError, match="its classes must be those of train, in the same order: their order differs"):
        describe(root)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gb18030", "latin-1"])
def test_a_file_that_pycocotools_would_not_read_is_refused(tmp_path: Path, encoding: str):
    path = tmp_path / "instances.json"
    path.write_bytes(json.dumps({**content(), "info": "é"}, ensure_ascii=False).encode(encoding))
    with pytest.raises(
        InputError, match=r"instances\.json (must be UTF-8, .*`data.name: custom` reads it|is neither UTF-8)"
    ) as caught:
        annotations.read(path, Annotations)
    assert "\n" not in str(caught.value)
