"""Laws of `python -m ghm.detect`: a trained detector on images that no data set knows."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools.coco import COCO

from ghm import params
from ghm.errors import InputError
from ghm.evaluation import run as evaluation
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
        (["photos", "nowhere.jpg"], "nowhere.jpg does not exist: name an image or a folder of images"),
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


@pytest.mark.parametrize("module", ["ghm.detect", "ghm.export"])
def test_help_does_not_wait_for_libraries(module: str):
    code = f"import sys, {module}.__main__; print(sorted({{'torch', 'mmdet', 'mmengine', 'numpy'}} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
