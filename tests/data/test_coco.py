"""Laws of COCO files, manifests and links."""

import json
from pathlib import Path
from typing import Any

import pytest

from ghm.data import coco
from ghm.errors import InputError


def content() -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 9, "height": 9}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 3, 3], "area": 9, "iscrowd": 0}],
        "categories": [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tiny data set with the layout of COCO."""
    place = tmp_path / "copy"
    for split in coco.LAYOUTS["coco"].values():
        (place / split.annotations).parent.mkdir(parents=True, exist_ok=True)
        (place / split.annotations).write_text(json.dumps(content()))
        (place / split.folder).mkdir()
        (place / split.folder / "1.jpg").write_bytes(b"12345")
    return place


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "must be COCO format with a list `images`"),
        (json.dumps({**content(), "images": []}), "holds no images: there is nothing"),
        (json.dumps({**content(), "categories": []}), "holds no categories"),
        (json.dumps({**content(), "annotations": {}}), "must be COCO format with a list `annotations`"),
        (json.dumps({**content(), "images": [{"id": 2}]}), "boxes with an unknown image_id, for example 1"),
        (json.dumps({**content(), "categories": [{"id": 2, "name": "a"}]}), "unknown category_id, for example 7"),
    ],
)
def test_a_bad_annotation_file_is_refused_in_one_sentence(tmp_path: Path, text: str, words: str):
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        coco.read_annotations(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_annotation_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.json is missing"):
        coco.read_annotations(tmp_path / "none.json")


def test_classes_keep_the_order_of_the_file_as_mmdet_numbers_them(root: Path):
    manifest = coco.manifest("coco", root)
    assert manifest["classes"] == ["seven", "three"]
    train = manifest["splits"]["train"]
    assert (train["images"], train["boxes"], train["images_without_boxes"], train["files_bytes"]) == (1, 1, 0, 5)
    assert train["boxes_per_class"] == {"seven": 1, "three": 0}


def test_the_manifest_tells_data_apart_and_holds_no_path_of_the_machine(root: Path):
    before = coco.manifest("coco", root)
    assert str(root) not in json.dumps(before)
    (root / "train2017" / "1.jpg").write_bytes(b"123456")
    after = coco.manifest("coco", root)
    assert after["splits"]["train"]["files_sha256"] != before["splits"]["train"]["files_sha256"]
    assert after["splits"]["val"] == before["splits"]["val"]


def test_an_image_that_is_not_there_is_named(root: Path):
    (root / "val2017" / "1.jpg").unlink()
    with pytest.raises(InputError, match=r"1 images of .*instances_val2017\.json are not in .*val2017, .* 1\.jpg"):
        coco.manifest("coco", root)


def test_splits_must_agree_in_their_classes(root: Path):
    other = content()
    other["categories"][0]["name"] = "siete"
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match="split val differ"):
        coco.manifest("coco", root)


def test_a_link_is_made_kept_and_moved_within_our_own_store(tmp_path: Path):
    store, place = tmp_path / "store", tmp_path / "data" / "digits"
    for name in ("a", "b"):
        (store / name).mkdir(parents=True)
    coco.link(store / "a", place, replaceable=store)
    coco.link(store / "a", place, replaceable=store)
    assert place.resolve() == store / "a"
    coco.link(store / "b", place, replaceable=store)
    assert place.resolve() == store / "b"
    assert [path.name for path in place.parent.iterdir()] == ["digits"]


def test_a_foreign_link_and_a_real_folder_are_reported_and_stay(tmp_path: Path):
    store, foreign, place = tmp_path / "store", tmp_path / "foreign", tmp_path / "data" / "coco"
    foreign.mkdir()
    place.parent.mkdir()
    place.symlink_to(foreign)
    with pytest.raises(InputError, match="is a link to .*foreign.*: remove it or set data.root"):
        coco.link(store / "coco", place, replaceable=store)
    assert place.resolve() == foreign
    place.unlink()
    place.mkdir()
    with pytest.raises(InputError, match="is in the way of a link"):
        coco.link(store / "coco", place, replaceable=store)
    assert place.is_dir()
