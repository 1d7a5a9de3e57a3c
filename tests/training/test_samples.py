"""Laws of what a training is fed: the same samples from any place on, and images that cannot be read are named."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmdet.datasets.transforms import Resize as MMDetResize
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.dataset import DefaultSampler
from mmengine.dataset import sampler as mmengines
from mmengine.registry import DefaultScope
from PIL import Image, ImageOps
from torch import Tensor

from ghm import augment, config, params, sections
from ghm.data.images import decode
from ghm.errors import InputError
from ghm.registry import MODELS
from ghm.training import batches, randomness, samples
from ghm.training.batches import Batches
from ghm.training.processes import Processes
from ghm.training.samples import Augment, BadImages, LoadImage, Resize, Sample, Unreadable
from tests.conftest import ROOT


class Sizes:
    """A data set of wide and high images."""

    def __init__(self, wide: list[bool]) -> None:
        self.wide = wide

    def __len__(self) -> int:
        return len(self.wide)

    def get_data_info(self, index: int) -> dict[str, Any]:
        return {"width": 2, "height": 1 if self.wide[index] else 3}


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 4), st.integers(0, 5))
def test_processes_share_an_epoch_as_mmengine_does(wide: list[bool], batch_size: int, world_size: int, done: int):
    images = Sizes(wide)
    seen: list[int] = []
    for rank in range(world_size):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mmengines, "get_dist_info", lambda rank=rank: (rank, world_size))
            theirs = DefaultSampler(images, seed=0)
        theirs.set_epoch(3)
        grouped: Any = AspectRatioBatchSampler(theirs, batch_size)
        expected = list(grouped)
        ours = Batches(images, batch_size, 0, Processes(rank, world_size))
        ours.start(2, 0)
        next(iter(ours))  # broken off, which leaves no trace
        ours.start(3, 0)
        found = [[index for _, index in batch] for batch in ours]
        assert found == expected and len(ours) == len(expected)
        ours.start(3, done)
        assert [[index for _, index in batch] for batch in ours] == expected[done:]
        seen += itertools.chain.from_iterable(found)
    assert set(seen) == set(range(len(wide)))
    assert len(seen) == -(-len(wide) // world_size) * world_size


@pytest.fixture
def scope(workspace: Path) -> Iterator[None]:
    """The tiny workspace with images of its own, and mmdet's names without a prefix, as the Runner has them."""
    folder = workspace / "data/digits"
    store = folder.resolve()
    folder.unlink()
    shutil.copytree(store, folder)
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


AUGMENT = [
    {"type": "RandomResize", "scale": [[96, 96], [48, 48]], "keep_ratio": True},
    {"type": "torchvision.RandomIoUCrop"},
    {"type": "RandAugment"},
    {"type": "PhotoMetricDistortion"},
    {"type": "torchvision.ColorJitter", "hue": 0.2},
]


def train_config(augment: list[dict[str, Any]], flip: float) -> Any:
    """Of the tiny training, with images that are changed at random."""
    content = sections.read(Path("params.yaml"))
    content["train"] |= {"augment": augment, "flip": flip}
    return config.for_run(params.parse(content), "ghmc_ghmr", 5)


def loaded(
    epochs: list[int], workers: int = 0, augment: list[dict[str, Any]] = AUGMENT, flip: float = 0.5
) -> list[dict[str, Any]]:
    """Pixels and boxes by image, for each of the epochs, of the loader of a training run."""
    cfg = train_config(augment, flip)
    cfg.train_dataloader.num_workers = workers
    loader = batches.loader(cfg, Processes())
    found = []
    for epoch in epochs:
        loader.batch_sampler.start(epoch, 0)
        images: dict[str, Any] = {}
        for batch in loader:
            parts = batch.paths, batch.pixel_BHW3, batch.size_B2, *vars(batch.truth).values()
            for path, *sample in zip(*parts, strict=True):
                images[path] = cut(*sample)
        found.append(images)
    return found


def cut(pixels: Tensor, size: Tensor, box: Tensor, label: Tensor, _padded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An image and its boxes without what other images of the batch added to them."""
    return pixels[: size[0], : size[1]], box[label >= 0], label[label >= 0]


def same(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    return all(map(torch.equal, first, second))


@pytest.mark.usefixtures("scope")
def test_a_sample_depends_on_seed_epoch_and_image_and_not_on_workers():
    alone = loaded([0, 1, 0])
    shared = loaded([0, 1, 0], workers=2)
    assert [len(images) for images in alone] == [24] * 3
    for one, other in zip(alone, shared, strict=True):
        assert one.keys() == other.keys()
        assert all(same(one[image], other[image]) for image in one)
    first, second, again = alone
    assert all(same(first[image], again[image]) for image in first)
    assert not any(same(first[image], second[image]) for image in first)


@pytest.mark.usefixtures("scope")
@pytest.mark.parametrize(("augment", "flip"), [([], 0.0), ([], 0.5), (AUGMENT, 0.5)])
def test_what_is_decoded_once_is_what_is_read_anew(
    augment: list[dict[str, Any]], flip: float, monkeypatch: pytest.MonkeyPatch
):
    kept = loaded([0, 1, 0], augment=augment, flip=flip)
    reads = []
    monkeypatch.setattr(samples, "decode", lambda content: reads.append(1) or decode(content))
    again = loaded([0, 1, 0], augment=augment, flip=flip)
    assert len(reads) == 24
    monkeypatch.setattr(batches, "MEMORY", 0)
    anew = loaded([0, 1, 0], augment=augment, flip=flip)
    assert len(reads) == 24 * 4
    for one, *others in zip(kept, again, anew, strict=True):
        assert all(same(one[image], other[image]) for image in one for other in others)


def test_a_batch_is_what_mmdets_preprocessor_makes_of_its_images():
    processor: Any = MODELS.build({**config.preprocessor(), "_scope_": "mmdet"})
    shapes = [(90, 120), (64, 100), (96, 128)]
    pictures = [picture(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    found = [
        Sample(torch.from_numpy(image[..., ::-1].copy()), torch.rand(2, 4), torch.tensor([1, 0]), "")
        for image in pictures
    ]
    theirs = [torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in pictures]
    blank = [DetDataSample(metainfo={"img_shape": shape}) for shape in shapes]
    expected = processor({"inputs": theirs, "data_samples": blank}, training=True)
    input_B3HW, truth = batches.prepare(SimpleNamespace(data_preprocessor=processor), batches.collate(found))
    assert torch.equal(input_B3HW, expected["inputs"])
    assert input_B3HW.is_contiguous(memory_format=torch.channels_last)
    assert truth.size_B2.tolist() == [list(sample.pad_shape) for sample in expected["data_samples"]]


def picture(height: int = 90, width: int = 120, seed: int = 0) -> Any:
    """Smooth colours with some noise: uint8 [height, width, 3]."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return np.clip(smooth + generator.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


def load(path: Path) -> np.ndarray:
    return LoadImage().transform({"img_path": str(path)})["img"]


def augmented(results: dict[str, Any], **transform: Any) -> dict[str, Any]:
    """What a transform of `train.augment` makes of an image."""
    train = replace(params.load(ROOT / "params.yaml").train, augment=(transform,))
    return Augment(augment.configs(train)).transform(results)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "transform",
    [
        {"type": "RandomCrop", "crop_size": [60, 60]},
        {"type": "MinIoURandomCrop"},
        {"type": "RandomAffine", "max_rotate_degree": 0.0, "max_shear_degree": 0.0},
        {"type": "torchvision.RandomIoUCrop"},
        {"type": "torchvision.RandomResizedCrop", "size": [100, 120]},
        {"type": "torchvision.RandomHorizontalFlip", "p": 1.0},
        {"type": "torchvision.RandomZoomOut", "p": 1.0},
        {"type": "torchvision.ScaleJitter", "target_size": [200, 160]},
    ],
)
def test_boxes_follow_the_images(transform: dict[str, Any], seed: int):
    image = np.zeros((90, 120, 3), np.uint8)
    true = [(20, 30, 60, 50), (80, 10, 100, 70)]
    for box, colour in zip(true, [(255, 0, 0), (0, 0, 255)], strict=True):
        image[box[1] : box[3], box[0] : box[2]] = colour
    results = dict(img=image, img_shape=(90, 120), gt_bboxes=HorizontalBoxes(torch.tensor(true).float()))
    # A label is the channel of the colour.
    results |= dict(gt_bboxes_labels=np.array([0, 2]), gt_ignore_flags=np.zeros(2, bool))
    with randomness.undisturbed():
        randomness.seed(seed)
        found = augmented(results, **transform)
    assert found["img_shape"] == found["img"].shape[:2]
    seen = set()
    for channel in (0, 2):
        rows, columns = np.nonzero(found["img"][..., channel].astype(int) - found["img"][..., 2 - channel] > 127)
        if len(rows):
            seen.add(channel)
            expected = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            [place] = np.flatnonzero(found["gt_bboxes_labels"] == channel)
            assert (found["gt_bboxes"].tensor[place] - expected).abs().max() <= 2, channel
    assert seen == set(found["gt_bboxes_labels"]) and len(found["gt_bboxes"]) == len(seen)


def test_torchvision_is_given_the_colours_in_its_order():
    image = picture()
    results = dict(img=image, gt_bboxes=HorizontalBoxes(torch.zeros(0, 4)))
    results |= dict(gt_bboxes_labels=np.zeros(0, int), gt_ignore_flags=np.zeros(0, bool))
    found = augmented(results, type="torchvision.Grayscale", num_output_channels=3)
    expected = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None].astype(int)
    assert np.abs(found["img"] - expected).max() <= 1


def test_a_crop_that_finds_no_box_leaves_the_image_as_it_was():
    results = dict(img=picture(), img_shape=(90, 120), gt_bboxes=HorizontalBoxes(torch.zeros(0, 4)))
    results |= dict(gt_bboxes_labels=np.zeros(0, int), gt_ignore_flags=np.zeros(0, bool))
    found = augmented(results, type="RandomCrop", crop_size=[60, 60])
    assert np.array_equal(found["img"], results["img"])


def turned(path: Path) -> None:
    """A photograph whose camera was held upright: the file says by how much a viewer turns it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture()).save(path, "JPEG", exif=exif, quality=95)


def palette(path: Path) -> None:
    Image.fromarray(picture()).convert("P").save(path, "PNG")


@pytest.mark.parametrize(("save", "height"), [(turned, 120), (palette, 90)])
def test_images_are_trained_on_as_a_viewer_shows_them(tmp_path: Path, save: Callable[[Path], None], height: int):
    save(path := tmp_path / "image")
    with Image.open(path) as image:
        shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[..., ::-1]
    found = load(path)
    assert found.shape == shown.shape == (height, 210 - height, 3)
    assert np.abs(found.astype(int) - shown).max() <= 2  # two decoders of JPEG may differ
    assert np.array_equal(found, LoadImageFromFile().transform({"img_path": str(path)})["img"])  # type: ignore[index]


def resized(width: int, height: int, kind: type[Any], scale: tuple[int, int] = (128, 96)) -> dict[str, Any]:
    """An image with a box on its right half, resized."""
    corners = torch.tensor([[width / 2, 0.0, width, height]])
    results = {"img": picture(height, width), "gt_bboxes": HorizontalBoxes(corners)}
    return kind(scale=scale, keep_ratio=True).transform(results)


@given(st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=50)
def test_images_are_resized_as_mmdet_resizes_them(width: int, height: int):
    if min(int(side * 128 / max(width, height) + 0.5) for side in (width, height)) < 1:
        return
    ours, theirs = resized(width, height, Resize), resized(width, height, MMDetResize)
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours.pop("gt_bboxes").tensor, theirs.pop("gt_bboxes").tensor)
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name


@pytest.mark.parametrize(("width", "height"), [(6000, 20), (1, 3000)])
def test_a_long_and_narrow_image_keeps_a_pixel_of_each_side(width: int, height: int):
    found = resized(width, height, Resize)
    new_height, new_width = found["img"].shape[:2]
    assert min(new_height, new_width) >= 1 and max(new_height, new_width) <= 128
    assert found["img_shape"] == (new_height, new_width)
    assert found["scale_factor"] == (new_width / width, new_height / height)
    assert torch.equal(found["gt_bboxes"].tensor, torch.tensor([[new_width / 2, 0, new_width, new_height]]))


@pytest.mark.usefixtures("scope")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_lost_reaches_the_training_by_name(workers: int):
    cfg = train_config(AUGMENT, 0.5)
    cfg.train_dataloader.num_workers = workers
    loader = batches.loader(cfg, Processes())
    dataset: Any = loader.dataset
    lost = dataset.get_data_info(7)
    Path(lost["img_path"]).unlink()
    found = list(loader)
    assert sum(map(len, found)) == 23
    found = [each for batch in found for each in batch.unreadable]
    assert found == [Unreadable(lost["img_id"], lost["img_path"], "No such file or directory")]


def test_so_many_images_may_be_left_out_and_not_one_more():
    bad = BadImages(2)
    for image in (1, 2, 1, 2):
        bad.add([Unreadable(image, f"a/{image}.jpg", "gone")])
    bad.require()
    assert bad.add([Unreadable(3, "a/3.jpg", "gone")]) == ["left out: image 3 (a/3.jpg): gone"]
    said = r"3 images cannot be read and data\.max_bad_images is 2: image 1 \(a/1\.jpg\): gone; .*Mend them, or raise"
    with pytest.raises(InputError, match=said):
        bad.require()
