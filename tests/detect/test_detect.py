"""Laws of `python -m ghm.detect`: a trained detector on images that no data set knows."""

import json
import re
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ghm import cli, data, params, training
from ghm.detect import __main__ as detect
from ghm.detect.detector import Detector, Source, find_run
from ghm.errors import InputError
from ghm.evaluation.run import detect as evaluate
from tests.trained import RUN, VARIANT, train_tiny, truth, with_runs

TEST = Path("data/digits/test")


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tiny, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def place(workspace: Path, trained: Path) -> Path:
    return with_runs(workspace, trained)


@pytest.fixture
def photos(place: Path) -> Path:
    """Images of three sizes in two folders, with a name that is there twice, and a file that is none."""
    folder = place / "photos"
    for name, size in (("a.jpg", (64, 64)), ("b.png", (100, 60)), ("deep/a.JPG", (64, 64)), ("deep/c.jpg", (50, 90))):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        number = 1 + len(list(folder.rglob("*.*")))
        with Image.open(TEST / f"{number:06d}.jpg") as image:
            image.resize(size).save(path)
    (folder / "notes.txt").write_text("no image")
    return folder


def command(monkeypatch: pytest.MonkeyPatch, *words: object, variant: str | None = VARIANT) -> None:
    chosen = ["--variant", variant] if variant else []
    monkeypatch.setattr(sys, "argv", ["detect", *chosen, *map(str, words)])
    detect.main()


def written(out: Path) -> dict[str, Any]:
    return json.loads((out / "detections.json").read_text())


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def by_image(content: dict[str, Any]) -> dict[str, list[tuple[str, float, list[float]]]]:
    """File name -> what is found on it."""
    classes = {category["id"]: category["name"] for category in content["categories"]}
    found: dict[int, list[Any]] = {image["id"]: [] for image in content["images"]}
    for box in content["annotations"]:
        found[box["image_id"]].append((classes[box["category_id"]], box["score"], box["bbox"]))
    return {Path(image["file_name"]).name: found[image["id"]] for image in content["images"]}


def require_equal(found: list[Any], expected: list[Any]) -> None:
    """The same classes, scores and boxes, best first, but for rounding."""
    assert len(found) == len(expected) > 0
    found, expected = (sorted(each, key=lambda one: (-round(one[1], 5), one[0], one[2])) for each in (found, expected))
    for one, other in zip(found, expected, strict=True):
        assert one[0] == other[0]
        assert one[1] == pytest.approx(other[1], abs=1e-5)
        assert one[2] == pytest.approx(other[2], abs=1e-3)


def test_an_image_gets_the_boxes_that_the_evaluation_gives_it(place: Path, monkeypatch: pytest.MonkeyPatch):
    command(monkeypatch, TEST, "--out", "out", "--score", 0, "--batch-size", 5, "--no-pictures")
    evaluate(params.load(), VARIANT, 0, RUN / "model.pth", place / "detections" / "seed_0" / "detections.json")
    split = {**truth("test"), "annotations": json.loads((place / "detections/seed_0/detections.json").read_text())}
    found, expected = by_image(written(place / "out")), by_image(split)
    assert len(found) == 12
    for name in expected:
        require_equal(found[name], expected[name])


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("what", ["train", "evaluate", "detect"])
def test_cuda_rounds_to_tf32_where_the_run_says_so_and_nowhere_else(
    place: Path, monkeypatch: pytest.MonkeyPatch, what: str, tf32: bool
):
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
        monkeypatch.setattr(backend, "allow_tf32", not tf32)
    given = params.load()
    given = replace(given, train=replace(given.train, tf32=tf32, epochs=1, val_images=0))
    if what == "train":
        training.train(given, VARIANT, place / "again")
    elif what == "evaluate":
        evaluate(given, VARIANT, 0, RUN / "model.pth", place / "detections" / "seed_0" / "detections.json")
    else:
        config = RUN / "config.py"
        config.write_text(re.sub(r"tf32=\w+", f"tf32={tf32}", config.read_text()))
        Detector(find_run(VARIANT, 0))
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32


def test_neighbours_and_the_size_of_a_batch_change_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch):
    command(monkeypatch, photos, "--out", "all", "--score", 0, "--no-pictures")
    together = by_image(written(Path("all")))
    for name in ("b.png", "c.jpg"):
        alone = next(photos.rglob(name))
        command(monkeypatch, alone, "--out", "alone", "--score", 0, "--batch-size", 1, "--no-pictures")
        require_equal(by_image(written(Path("alone")))[name], together[name])


def test_what_is_written_is_a_coco_file(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    command(monkeypatch, photos, "--out", "low", "--score", 0, "--no-pictures")
    scores = sorted(box["score"] for box in written(Path("low"))["annotations"])
    least = scores[len(scores) // 2]
    command(monkeypatch, photos, "--out", "out", "--score", least, "--no-pictures")
    coco: Any = COCO("out/detections.json")
    capsys.readouterr()
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list("0123456789")
    sizes = {Path(image["file_name"]).name: (image["width"], image["height"]) for image in coco.imgs.values()}
    assert sizes == {"a.jpg": (64, 64), "b.png": (100, 60), "a.JPG": (64, 64), "c.jpg": (50, 90)}
    assert all(Path(image["file_name"]).is_file() for image in coco.imgs.values())
    assert min(box["score"] for box in coco.anns.values()) == least
    for box in coco.anns.values():
        x, y, width, height = box["bbox"]
        image = coco.imgs[box["image_id"]]
        assert 0 <= x <= x + width <= image["width"] + 1e-3 and 0 <= y <= y + height <= image["height"] + 1e-3
        assert box["area"] == width * height and box["iscrowd"] == 0
    assert [path.name for path in Path("out").iterdir()] == ["detections.json"]


def test_pictures_keep_the_resolution_and_no_two_share_a_name(photos: Path, monkeypatch: pytest.MonkeyPatch):
    command(monkeypatch, photos, photos / "a.jpg", "--out", photos / "found", "--score", 0.0)
    command(monkeypatch, photos, "--out", photos / "found")  # pictures of the first run are no images of the second
    sizes = {path.name: size(path) for path in (photos / "found").glob("*.jpg")}
    assert sizes == {"a.jpg": (64, 64), "b.jpg": (100, 60), "a-2.jpg": (64, 64), "c.jpg": (50, 90)}
    assert len(written(photos / "found")["images"]) == 4


def test_an_image_stands_as_its_exif_says(place: Path, monkeypatch: pytest.MonkeyPatch):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to see it upright
    Path("turned").mkdir()
    with Image.open(TEST / "000001.jpg") as image:
        image.resize((60, 90)).save("turned/exif.jpg", exif=exif)
    upright = cv2.imread("turned/exif.jpg")
    assert upright is not None and upright.shape[:2] == (60, 90)
    cv2.imwrite("turned/plain.png", upright)
    command(monkeypatch, "turned", "--out", "out", "--score", 0)
    content = written(Path("out"))
    assert {(image["width"], image["height"]) for image in content["images"]} == {(90, 60)}
    require_equal(by_image(content)["exif.jpg"], by_image(content)["plain.png"])
    assert size(Path("out/exif.jpg")) == (90, 60)


def test_what_cannot_be_read_in_a_folder_is_named_and_the_rest_is_written(
    photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    whole = (photos / "a.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["detect", "--variant", VARIANT, str(photos), "--out", "out"])
    with pytest.raises(SystemExit) as caught:
        cli.run(detect.main)
    assert str(caught.value.code).startswith("error: 2 of 6 images cannot be read, see above: all others")
    named = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [str(photos / name) in text for name, text in zip(("cut.jpg", "empty.png"), named, strict=True)] == [
        True
    ] * 2
    assert {Path(image["file_name"]).name for image in written(Path("out"))["images"]} == {
        "a.jpg", "b.png", "a.JPG", "c.jpg",
    }  # fmt: skip
    assert len(list(Path("out").glob("*.jpg"))) == 4


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["photos", "nowhere.jpg"], "nowhere.jpg does not exist: name an image or a folder of images"),
        (["photos/notes.txt"], "none of 1 file is an image that can be read, see above"),
        (["photos", "empty"], "empty holds no image that can be read .*gif.*: name a folder that does"),
        ([], "name images or folders, or else a --split"),
        (["photos", "--split", "val"], "name images or folders, or else a --split"),
        (["photos", "--score", "1.5"], r"--score must be in \[0, 1\], got 1.5"),
        (["photos", "--batch-size", "0"], "--batch-size must be 1 or greater, got 0"),
        (["photos", "--config", "c.py"], "--config and --checkpoint belong together: name both"),
        (["photos", "--config", "c.py", "--checkpoint", "m.pth"], "--variant takes the place of --config"),
        (["photos", "--seed", "7"], "seed_7 holds no finished run, there is seed_0: name one of these with --seed"),
        (["--split", "test-dev"], "--split must be one of test, train, val of digits, got 'test-dev'$"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    photos: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
):
    Path("empty").mkdir()
    with pytest.raises(InputError, match=sentence):
        command(monkeypatch, *words, "--out", "out")
    assert not Path("out").exists()


def test_a_file_that_is_no_image_does_not_keep_the_named_ones_from_being_done(
    photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(InputError, match="1 of 2 images cannot be read, see above: all others are done"):
        command(monkeypatch, photos / "notes.txt", photos / "b.png", "--out", "out")
    assert "photos/notes.txt cannot be read: it is no image that OpenCV can decode (JPEG, PNG, " in caplog.text
    assert [Path(image["file_name"]).name for image in written(Path("out"))["images"]] == ["b.png"]


@pytest.mark.parametrize("own", [True, False])
def test_a_long_and_narrow_image_is_one_like_the_others(photos: Path, monkeypatch: pytest.MonkeyPatch, own: bool):
    sizes = {"wide.png": (6000, 40), "line.png": (3000, 1), "post.png": (1, 3000), "wider.png": (70_000, 9)}
    for name, shape in sizes.items():
        with Image.open(TEST / "000001.jpg") as image:
            image.resize(shape).save(photos / name)
    source = foreign(config={"'ghm.Resize'": "'Resize'"})
    words = [] if own else ["--config", source.config, "--checkpoint", source.checkpoint]
    command(monkeypatch, photos, *words, "--out", "out", "--score", 0, variant=VARIANT if own else None)
    found = {Path(image["file_name"]).name: image for image in written(Path("out"))["images"]}
    assert len(found) == 8
    for name, shape in sizes.items():
        assert (found[name]["width"], found[name]["height"]) == shape
        drawn = Path("out", name).with_suffix(".jpg")
        assert size(drawn) == (shape if max(shape) < 65_500 else (65_500, 8))


def test_images_of_every_format_are_found_in_a_folder(photos: Path, monkeypatch: pytest.MonkeyPatch):
    Path("formats").mkdir()
    kinds = ("avif", "bmp", "gif", "jpeg", "png", "tiff", "webp")
    with Image.open(TEST / "000001.jpg") as image:
        for kind in kinds:
            options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
            image.save(f"formats/{kind}.{kind}", **options)
    command(monkeypatch, "formats", "--out", "out", "--score", 0, "--no-pictures")
    found = by_image(written(Path("out")))
    assert sorted(found) == [f"{kind}.{kind}" for kind in kinds]
    for kind in ("bmp", "tiff", "webp"):
        require_equal(found[f"{kind}.{kind}"], found["png.png"])


def test_categories_have_the_ids_of_the_data_set_so_that_its_own_file_can_judge(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Ids in no order, from 0, and a parent class without boxes in the place of a digit: as exports have them."""
    ids = [0, 7, 3, 40, 12, 5, 99, 1, 2, 2**40]
    words = (TEST, "--score", 0, "--no-pictures")
    own = truth("test")
    own["annotations"] = [box for box in own["annotations"] if box["category_id"] != own["categories"][-1]["id"]]
    command(monkeypatch, *words, "--out", "counted")
    expected = precision(own, written(Path("counted")))

    model = torch.load(RUN / "model.pth", weights_only=True)
    model["meta"]["dataset_meta"]["category_ids"] = ids
    torch.save(model, RUN / "model.pth")
    numbers = {entry["id"]: number for entry, number in zip(own["categories"], ids, strict=True)}
    for entry in own["categories"]:
        entry["id"] = numbers[entry["id"]]
    for box in own["annotations"]:
        box["category_id"] = numbers[box["category_id"]]
    command(monkeypatch, *words, "--out", "out")
    found = written(Path("out"))
    assert [(entry["id"], entry["name"]) for entry in found["categories"]] == list(zip(ids, "0123456789", strict=True))
    assert precision(own, found) == expected > 0
    capsys.readouterr()


def precision(own: dict[str, Any], found: dict[str, Any]) -> float:
    """AP of detections by pycocotools, with a data set's own annotations."""
    images = {image["file_name"]: image["id"] for image in own["images"]}
    names = {image["id"]: Path(image["file_name"]).name for image in found["images"]}
    results: Any = [{**box, "image_id": images[names[box["image_id"]]]} for box in found["annotations"]]
    Path("own.json").write_text(json.dumps(own))
    judge = COCO("own.json")
    judged = COCOeval(judge, judge.loadRes(results), "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    return float(judged.stats[0])


def test_ids_that_do_not_fit_the_classes_are_counted_from_1(place: Path):
    for ids in (None, [1, 2], [1] * 10, list("abcdefghij"), 5):
        meta = {"dataset_meta": {"classes": tuple("abcdefghij"), "category_ids": ids}}
        assert Detector(foreign(meta=meta)).category_ids == list(range(1, 11))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name a detector: --variant, or --config and --checkpoint"),
        (["--variant", "fl_sl1"], "model.pth is missing: run `dvc repro train@fl_sl1`"),
        (["--variant", "nonsense"], "the variant must be one of fl_sl1, .*, got 'nonsense'"),
        (["--checkpoint", "m.pth"], "--config and --checkpoint belong together: name both"),
        (["--config", "c.py", "--checkpoint", "m.pth"], "c.py is missing: name the config of a detector"),
        (["--config", "photos/notes.txt", "--checkpoint", "m.pth"], "notes.txt is no config that mmengine can read"),
        (["--config", RUN / "config.py", "--checkpoint", "m.pth"], "m.pth is missing: name the checkpoint"),
        (
            ["--config", RUN / "config.py", "--checkpoint", RUN / "config.py"],
            "is no checkpoint that can be read safely",
        ),
        (["--config", RUN / "config.py", "--checkpoint", "m.pth", "--seed", "0"], "--seed belongs to --variant"),
    ],
)
def test_a_detector_that_is_not_there_is_named(
    photos: Path, monkeypatch: pytest.MonkeyPatch, words: list[object], sentence: str
):
    with pytest.raises(InputError, match=sentence):
        command(monkeypatch, "photos", "--out", "out", *words, variant=None)
    assert not Path("out").exists()


def test_a_file_is_no_place_for_results_and_no_picture_replaces_an_image(photos: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="--out must be a folder, photos/notes.txt is a file"):
        command(monkeypatch, "photos", "--out", "photos/notes.txt")
    before = (photos / "a.jpg").read_bytes()
    with pytest.raises(InputError, match="a picture would overwrite your image photos/a.jpg: name another --out"):
        command(monkeypatch, photos / "a.jpg", "--out", "photos")
    command(monkeypatch, photos / "a.jpg", "--out", "photos", "--no-pictures")
    assert (photos / "a.jpg").read_bytes() == before


def test_a_run_needs_no_parameters_of_today(place: Path, monkeypatch: pytest.MonkeyPatch):
    Path("params.yaml").unlink()
    command(monkeypatch, TEST / "000001.jpg", "--seed", 0, "--out", "out", "--no-pictures")
    assert len(written(Path("out"))["images"]) == 1


def foreign(**changes: Any) -> Source:
    """The trained detector as a config and a checkpoint of mmdet's own, changed."""
    config = find_run(VARIANT, 0).config.read_text().replace("'ghm.LoadImage'", "'LoadImageFromFile'")
    for old, new in changes.get("config", {}).items():
        assert old in config
        config = config.replace(old, new)
    content = torch.load(RUN / "model.pth", weights_only=True)
    content["meta"] = changes.get("meta", {})
    content["state_dict"] |= changes.get("state", {})
    Path("foreign.py").write_text(config)
    torch.save(content, "foreign.pth")
    return Source(Path("foreign.py"), Path("foreign.pth"))


def test_classes_are_named_by_the_checkpoint_then_the_config_then_by_numbers(place: Path):
    names = tuple("abcdefghij")
    assert Detector(foreign(meta={"dataset_meta": {"classes": names}})).classes == list(names)
    assert Detector(foreign(meta={"CLASSES": names})).classes == list(names)
    assert Detector(foreign(meta={"CLASSES": names[:3]})).classes == list("0123456789")  # of another model
    assert Detector(foreign(config={"'7'": "'seven'"})).classes[7] == "seven"
    nameless = Detector(foreign(config={"metainfo=": "note="}))
    assert nameless.classes == list("0123456789") and nameless.name(11) == "11"


def test_another_detector_finds_what_its_files_say(photos: Path, monkeypatch: pytest.MonkeyPatch):
    source = foreign(meta={"dataset_meta": {"classes": tuple("abcdefghij")}})
    command(monkeypatch, photos, "--out", "own", "--score", 0, "--no-pictures")
    words = ("--config", source.config, "--checkpoint", source.checkpoint)
    command(monkeypatch, photos, *words, "--out", "out", "--score", 0, "--no-pictures", variant=None)
    own, other = written(Path("own")), written(Path("out"))
    assert own["annotations"] == other["annotations"] and own["images"] == other["images"]
    assert [category["name"] for category in other["categories"]] == list("abcdefghij")


def test_a_checkpoint_that_does_not_fit_its_config_is_refused(place: Path):
    with pytest.raises(InputError, match="foreign.pth does not fit foreign.py: .* of another shape"):
        Detector(foreign(config={"num_classes=10": "num_classes=3"}))
    with pytest.raises(InputError, match="describes no model that mmdet can build: .*Retina"):
        Detector(foreign(config={"type='RetinaNet'": "type='RetinaNot'"}))


def test_a_score_below_the_detectors_own_threshold_is_honoured(photos: Path, monkeypatch: pytest.MonkeyPatch):
    source = foreign(config={"score_thr=0.0": "score_thr=0.99"})
    words = ("--config", source.config, "--checkpoint", source.checkpoint, "--no-pictures")
    command(monkeypatch, photos, *words, "--out", "high", "--score", 0.995, variant=None)
    assert written(Path("high"))["annotations"] == []
    command(monkeypatch, photos, *words, "--out", "low", "--score", 0, variant=None)
    assert written(Path("low"))["annotations"] != []


def use_coco(place: Path) -> params.Params:
    """The digits laid out as COCO 2017, its test split without annotations; make it the data set."""
    root = place / "coco"
    (root / "annotations").mkdir(parents=True)
    for name in ("train", "val", "test"):
        (root / f"{name}2017").symlink_to((Path("data/digits") / name).resolve())
        content: dict[str, Any] = truth(name)
        if name == "test":
            del content["annotations"]
        file = "image_info_test-dev2017" if name == "test" else f"instances_{name}2017"
        (root / "annotations" / f"{file}.json").write_text(json.dumps(content))
    text = Path("params.yaml").read_text()
    for old, new in (("name: digits", "name: coco"), ("  root: ", f"  root: {root} "), ("split: test", "split: val")):
        assert old in text
        text = text.replace(old, new, 1)
    Path("params.yaml").write_text(text.replace("test2017: false", "test2017: true", 1))
    given = params.load()
    data.prepare(given)
    return given


def test_a_split_without_labels_is_written_as_the_server_of_coco_takes_it(place: Path, monkeypatch: pytest.MonkeyPatch):
    expected = place / "detections" / "seed_0" / "detections.json"
    evaluate(params.load(), VARIANT, 0, RUN / "model.pth", expected)
    use_coco(place)
    command(monkeypatch, "--split", "test-dev", "--out", "out")
    stem = f"detections_test-dev2017_{VARIANT}_results"
    assert sorted(path.name for path in Path("out").iterdir()) == [f"{stem}.json", f"{stem}.zip"]
    with zipfile.ZipFile(f"out/{stem}.zip") as archive:
        assert archive.namelist() == [f"{stem}.json"]
        found = json.loads(archive.read(f"{stem}.json"))
    assert found == json.loads(Path(f"out/{stem}.json").read_text())
    assert all(set(box) == {"image_id", "category_id", "bbox", "score"} for box in found)
    same = json.loads(expected.read_text())
    assert [(box["image_id"], box["category_id"]) for box in found] == [
        (box["image_id"], box["category_id"]) for box in same
    ]
    for box, other in zip(found, same, strict=True):
        assert box["bbox"] == pytest.approx(other["bbox"], abs=0.006) and box["score"] == pytest.approx(
            other["score"], abs=1e-5
        )


def test_a_split_that_is_not_there_says_how_to_get_it(place: Path, monkeypatch: pytest.MonkeyPatch):
    command(monkeypatch, "--split", "val", "--out", "out")
    assert Path(f"out/detections_val_{VARIANT}_results.zip").is_file()
    given = use_coco(place)
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("test2017: true", "test2017: false", 1))
    data.prepare(replace(given, data=replace(given.data, test2017=False)))
    with pytest.raises(InputError, match="got 'test-dev': set data.test2017 to true and run `dvc repro data`"):
        command(monkeypatch, "--split", "test-dev", "--out", "out")
    Path("data/coco.json").unlink()
    with pytest.raises(InputError, match="data/coco.json is missing: run `dvc repro data`"):
        command(monkeypatch, "--split", "val", "--out", "out")


def test_a_model_of_other_parameters_says_so(place: Path, monkeypatch: pytest.MonkeyPatch):
    text = Path("params.yaml").read_text()
    assert "head_channels: 64" in text
    Path("params.yaml").write_text(text.replace("head_channels: 64", "head_channels: 32"))
    with pytest.raises(InputError, match=f"does not fit params.yaml: run `dvc repro train@{VARIANT}`"):
        command(monkeypatch, "--split", "val", "--out", "out")
    assert list(Path("out").iterdir()) == []
