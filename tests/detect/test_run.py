"""Laws of `python -m ghm.detect`: a trained detector on images that no data set knows."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from ghm import files, params, runs
from ghm.data.images import UnreadableError, decode
from ghm.detect import inputs
from ghm.detect.detector import SCORE
from ghm.errors import InputError
from ghm.evaluation import run as evaluation
from tests.conftest import ROOT
from tests.detect.conftest import TEST, Command, by_image, foreign, require_equal, words_for
from tests.trained import RUN, VARIANT, truth


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_an_image_gets_the_boxes_that_the_evaluation_gives_it(place: Path, command: Command):
    found = by_image(command(TEST, "--score", 0, "--no-pictures"))
    detections, _ = evaluation.detect(params.load(), VARIANT, 0, RUN / "model.pth", "test")
    expected = by_image({**truth("test"), "annotations": detections})
    assert len(found) == 12
    for name in expected:
        require_equal(found[name], expected[name])


def test_what_is_written_is_a_coco_file(photos: Path, command: Command, capsys: pytest.CaptureFixture):
    scores = sorted(box["score"] for box in command(photos, "--score", 0, "--no-pictures")["annotations"])
    least = scores[len(scores) // 2]
    command(photos, "--score", least, "--no-pictures")
    coco: Any = COCO("out/detections.json")
    capsys.readouterr()
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list("0123456789")
    sizes = {Path(image["file_name"]).name: (image["width"], image["height"]) for image in coco.imgs.values()}
    assert sizes == {"a.jpg": (64, 64), "b.png": (100, 60), "a.JPG": (64, 64), "c.jpg": (50, 90)}
    assert min(box["score"] for box in coco.anns.values()) == least
    for box in coco.anns.values():
        x, y, width, height = box["bbox"]
        image = coco.imgs[box["image_id"]]
        assert 0 <= x <= x + width <= image["width"] + 1e-3 and 0 <= y <= y + height <= image["height"] + 1e-3
        assert box["area"] == width * height and box["iscrowd"] == 0
    assert [path.name for path in Path("out").iterdir()] == ["detections.json"]


def test_pictures_keep_the_resolution_and_no_two_share_a_name(photos: Path, command: Command):
    out = photos / "found"
    command(photos, photos / "a.jpg", "--score", 0.0, out=str(out))
    content = command(photos, out=str(out))  # pictures of the first run are no images of the second
    sizes = {path.name: size(path) for path in out.glob("*.jpg")}
    assert sizes == {"a.jpg": (64, 64), "b.jpg": (100, 60), "a-3.jpg": (64, 64), "c.jpg": (50, 90)}
    assert len(content["images"]) == 4


def test_what_cannot_be_read_is_named_and_the_rest_is_written(
    photos: Path, command: Command, caplog: pytest.LogCaptureFixture
):
    whole = (photos / "a.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").write_bytes(b"")
    with pytest.raises(InputError, match="^3 of 7 images cannot be read, see above: all others are done$"):
        command(photos, photos / "notes.txt")
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    for name, message in zip(("cut.jpg", "empty.png", "notes.txt"), messages, strict=True):
        assert str(photos / name) in message
    assert len(list(Path("out").glob("*.jpg"))) == 4
    with pytest.raises(InputError, match="none of 1 file is an image that can be read"):
        command(photos / "notes.txt", out="none")
    assert not Path("none").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["photos", "nowhere.jpg"], "nowhere.jpg does not exist: name an image, a folder of images or a pattern"),
        (["photos", "empty"], "empty holds no image that can be read .*gif.*: name a folder that does"),
        (["photos", "--config", "c.py", "--checkpoint", "m.pth"], "name one detector: --variant, or --config and"),
        (["photos", "--seed", "7"], "seed_7 holds no finished run, there is seed_0: name one of these with --seed"),
        (["photos", "--variant", "nonsense"], "the variant must be one of fl_sl1, .*, got 'nonsense'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    photos: Path, command: Command, words: list[str], sentence: str
):
    Path("empty").mkdir()
    with pytest.raises(InputError, match=sentence):
        command(*words)
    assert not Path("out").exists()


def test_a_file_is_no_place_for_results_and_no_picture_replaces_an_image(photos: Path, command: Command):
    with pytest.raises(InputError, match="--out must be a folder, photos/notes.txt is a file"):
        command("photos", out="photos/notes.txt")
    before = (photos / "a.jpg").read_bytes()
    with pytest.raises(InputError, match="pictures might overwrite your images in photos: name another --out"):
        command(photos / "a.jpg", out="photos")
    command(photos / "a.jpg", "--no-pictures", out="photos")
    assert (photos / "a.jpg").read_bytes() == before


@pytest.mark.parametrize("own", [True, False])
def test_a_long_and_narrow_image_is_one_like_the_others(photos: Path, command: Command, own: bool):
    sizes = {"wide.png": (6000, 40), "line.png": (3000, 1), "post.png": (1, 3000), "wider.png": (70_000, 9)}
    for name, shape in sizes.items():
        Image.new("RGB", shape, "red").save(photos / name)
    words = () if own else words_for(foreign(config={"'ghm.Resize'": "'Resize'"}))
    content = command(photos, *words, "--score", 0, variant=VARIANT if own else None)
    found = {Path(image["file_name"]).name: (image["width"], image["height"]) for image in content["images"]}
    for name, shape in sizes.items():
        assert found[name] == shape
        assert size(Path("out", name).with_suffix(".jpg")) == (shape if max(shape) < 65_500 else (65_500, 8))


def test_images_of_every_format_are_found_in_a_folder(place: Path, command: Command):
    Path("formats").mkdir()
    kinds = ("avif", "bmp", "gif", "jpeg", "png", "tiff", "webp")
    with Image.open(TEST / "000001.jpg") as image:
        for kind in kinds:
            image.save(f"formats/{kind}.{kind}")
    found = by_image(command("formats", "--score", 0, "--no-pictures"))
    assert sorted(found) == [f"{kind}.{kind}" for kind in kinds]


def test_a_run_needs_no_parameters_of_today(place: Path, command: Command):
    Path("params.yaml").unlink()
    assert len(command(TEST / "000001.jpg", "--seed", 0, "--no-pictures")["images"]) == 1


def evaluated(score: float, fingerprint: str | None = None) -> None:
    """What the stage `evaluate` leaves of the run, as far as it is of interest here."""
    own = runs.Record.read(RUN).fingerprint
    content = {"score": score, "chosen_on": "val", "fingerprint": fingerprint or own}
    files.write_json(runs.detections_folder(VARIANT, 0) / runs.OUTCOME, content)


def test_boxes_are_shown_from_the_score_of_the_best_f1_on_unless_told_otherwise(
    photos: Path, command: Command, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    everything = command(photos, "--score", 0, "--no-pictures")["annotations"]
    scores = sorted(box["score"] for box in everything)
    middle, best = scores[len(scores) // 2], scores[-1]
    evaluated(middle)
    assert sorted(box["score"] for box in command(photos, "--no-pictures")["annotations"]) == scores[len(scores) // 2 :]
    assert (
        f"boxes above {middle:.3g} (the score of the best F1 on val): out/detections.json, of 4 images" in caplog.text
    )
    assert len(command(photos, "--score", 0, "--no-pictures")["annotations"]) == len(scores)
    assert command(photos, "--score", 0.99, "--no-pictures")["annotations"] == []
    assert f"0 boxes above 0.99; the best score was {best:.3g}: out/detections.json, of 4 images" in caplog.text
    evaluated(middle, "another run's")
    command(photos, "--no-pictures")
    assert f"above {SCORE} (the score of the best F1 is not known)" in caplog.text


def test_classes_and_crops_are_of_the_boxes_that_were_asked_for(photos: Path, command: Command):
    everything = by_image(command(photos, "--score", 0, "--no-pictures"))
    wanted = Counter(name for rows in everything.values() for name, *_ in rows).most_common(2)
    content = command(photos, "--score", 0, "--classes", ",".join(name for name, _ in wanted), "--crops")
    assert {category["name"] for category in content["categories"]} == set("0123456789"), "the ids keep their meaning"
    names = [name for name, _ in wanted]
    assert by_image(content) == {image: [row for row in rows if row[0] in names] for image, rows in everything.items()}
    crops = {path.relative_to("out/crops").as_posix(): size(path) for path in Path("out/crops").rglob("*.jpg")}
    assert len(crops) == len(content["annotations"]) > 10
    stems = {image["id"]: path for image, path in zip(content["images"], ("a", "b", "a-3", "c"), strict=True)}
    classes = {category["id"]: category["name"] for category in content["categories"]}
    for box in content["annotations"]:
        width, height = box["bbox"][2:]
        shape = crops[f"{classes[box['category_id']]}/{stems[box['image_id']]}-{box['id']}.jpg"]
        assert np.abs(np.array(shape) - (width, height)).max() < 2
    with pytest.raises(InputError, match="--classes must be among 0, 1, .*, got 'cat'"):
        command(photos, "--classes", "1,cat")


def test_a_pattern_names_images_and_a_name_with_brackets_is_a_name(photos: Path, command: Command):
    (photos / "a.jpg").rename(photos / "[a].jpg")
    for pattern, expected in {
        "photos/**/*.jpg": ["[a].jpg", "c.jpg"], "photos/?.png": ["b.png"], "photos/[a].jpg": ["[a].jpg"],
        (photos / "deep" / "*").absolute(): ["a.JPG", "c.jpg"],
    }.items():  # fmt: skip
        assert sorted(by_image(command(pattern, "--no-pictures"))) == expected


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_an_image_of_sixteen_bits_is_read_like_the_same_one_of_eight(place: Path, bits: int, ending: str):
    pixels = decode((TEST / "000001.jpg").read_bytes())
    pixels[0, 0] = 255  # so that the range is known
    low = np.random.default_rng(0).integers(0, 2 ** (bits - 8), pixels.shape)
    deep = (pixels.astype(np.uint16) << (bits - 8)) + low.astype(np.uint16)
    cv2.imwrite(f"deep.{ending}", deep)
    assert (inputs.read(Path(f"deep.{ending}")) == pixels).all()
    cv2.imwrite("floats.tiff", pixels.astype(np.float32))
    with pytest.raises(UnreadableError, match="its numbers are float32: convert it to 8 bits per channel"):
        inputs.read(Path("floats.tiff"))


def test_the_boxes_of_a_coco_files_images_have_its_ids_and_pycocotools_takes_them(
    place: Path, command: Command, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
):
    """Ids of images and classes that nobody would guess; the file knows a folder of the images, and one more image."""
    content: dict[str, Any] = truth("test")
    for image in content["images"]:
        image["file_name"] = f"test\\{image['file_name']}"
    content["images"] = [*content["images"][2:], {"id": 1, "file_name": "gone.jpg", "width": 5, "height": 5}]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [box for box in content["annotations"] if box["image_id"] in kept]
    for row in (*content["images"], *content["categories"]):
        row["id"] = 7000 - 3 * row["id"]
    for box in content["annotations"]:
        box |= {name: 7000 - 3 * box[name] for name in ("image_id", "category_id")}
    content["images"][0]["width"] += 1
    Path("own.json").write_text(json.dumps(content))
    found = command(TEST, "--annotations", "own.json", "--score", 0, "--no-pictures")
    assert sorted(path.name for path in Path("out").iterdir()) == ["detections.json", "results.json"]
    rows = sorted((image for image in content["images"] if image["id"] != 6997), key=lambda image: image["file_name"])
    assert found["images"] == rows
    assert found["categories"] == [{key: one[key] for key in ("id", "name")} for one in content["categories"]]
    messages = [record.getMessage() for record in caplog.records]
    assert "2 images that own.json does not name: left out" in messages
    assert "1 image of own.json: not among the images" in messages
    assert any("64 x 64 pixels, not 65 x 64 as its annotations say" in message for message in messages)
    COCO("own.json").loadRes("out/results.json")
    capsys.readouterr()
    plain = by_image(command(TEST, "--score", 0, "--no-pictures", out="plain"))
    found["images"] = [{**row, "file_name": row["file_name"][5:]} for row in rows]
    for name, boxes in by_image(found).items():
        require_equal(boxes, plain[name])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda content: content["images"].append(content["images"][0]), "own.json has an id or a file name of an"),
        (lambda content: content["categories"].pop(3), "own.json has no class '3', which the detector finds: leave"),
        (lambda content: content["images"][0].update(id="one"), "own.json is not in COCO format: Expected `int`"),
        (lambda content: [image.update(file_name="x/" + image["file_name"]) for image in content["images"]],
         "own.json names none of 12 images, such as data/digits/test/000001.jpg"),
        (lambda content: content.clear(), "own.json is not in COCO format: .*missing required field `images`"),
    ],
)  # fmt: skip
def test_a_coco_file_that_cannot_be_followed_is_refused(
    place: Path, command: Command, change: Callable[[Any], Any], sentence: str
):
    content = truth("test")
    change(content)
    Path("own.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=sentence):
        command(TEST, "--annotations", "own.json")
    assert not Path("out").exists()


def test_two_images_for_one_row_of_a_coco_file_are_named(place: Path, command: Command):
    shutil.copytree(TEST, "copy/test")
    Path("own.json").write_text(json.dumps(truth("test")))
    with pytest.raises(InputError, match="000001.jpg of own.json may be .*test/000001.jpg or .*000001.jpg: name one"):
        command(TEST, "copy", "--annotations", "own.json")


SHARED = ROOT.parent / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data sets beside the repository")
def test_photographs_of_others_are_detected_on_with_the_ids_of_their_own_file(place: Path, command: Command):
    file = SHARED / "chess" / "valid" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    names = [category["name"] for category in content["categories"]]
    model = torch.load(RUN / "model.pth", weights_only=True)
    model["meta"]["dataset_meta"] |= {"classes": names[1:11], "category_ids": [*range(10)]}
    torch.save(model, RUN / "model.pth")
    found = command(file.parent / "*.jpg", "--annotations", file, "--score", 0)
    keys = ("file_name", "width", "height")
    known, expected = ({row["id"]: [row[key] for key in keys] for row in one["images"]} for one in (found, content))
    assert known == expected
    ids = {category["id"] for category in content["categories"][1:11]}
    assert {box["category_id"] for box in found["annotations"]} <= ids
    assert len(list(Path("out").glob("*.jpg"))) == len(expected)


@pytest.mark.parametrize("module", ["ghm.detect", "ghm.export"])
def test_help_does_not_wait_for_libraries(module: str):
    code = f"import sys, {module}.__main__; print(sorted({{'torch', 'mmdet', 'mmengine', 'numpy'}} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
