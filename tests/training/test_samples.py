"""Laws of what a training is fed: the same samples from any place on, and images that cannot be read are named."""

import itertools
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
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
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.dataset import Compose, DefaultSampler
from mmengine.dataset import sampler as samplers
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ghm import config, params
from ghm.errors import InputError
from ghm.registry import DATASETS
from ghm.training.samples import (
    BadImages,
    LoadImage,
    Resize,
    ResumableBatches,
    Samples,
    Unreadable,
    ignore_signals,
)
from ghm.words import count

FORK = multiprocessing.get_context("fork")


class Sizes:
    """A data set of wide and high images that notes which ones are read."""

    def __init__(self, wide: list[bool]) -> None:
        self.wide = wide
        self.read: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.wide)

    def get_data_info(self, index: int) -> dict[str, Any]:
        return {"width": 2, "height": 1 if self.wide[index] else 3}

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        self.read.append(key)
        return key


def whole_epoch(images: Sizes, batch_size: int, epoch: int, seed: int = 0) -> list[list[int]]:
    """The batches of mmdet and mmengine."""
    sampler = DefaultSampler(images, seed=seed)
    sampler.set_epoch(epoch)
    batches: Any = AspectRatioBatchSampler(sampler, batch_size)
    return list(batches)


def batches_of(images: Sizes, batch_size: int, seed: int = 0) -> ResumableBatches:
    return ResumableBatches(DefaultSampler(images, seed=seed), batch_size)


WIDE = st.lists(st.booleans(), min_size=1, max_size=40)
SIZE = st.integers(1, 9)


@given(WIDE, SIZE, st.integers(1, 4), st.integers(0, 5))
@settings(deadline=None)
def test_processes_share_an_epoch_as_mmengine_does(wide: list[bool], batch_size: int, world_size: int, done: int):
    images = Sizes(wide)
    seen: list[int] = []
    for rank in range(world_size):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(samplers, "get_dist_info", lambda rank=rank: (rank, world_size))
            batches, expected = batches_of(images, batch_size), whole_epoch(images, batch_size, 3)
        batches.start(2, 0)
        next(iter(batches))  # broken off, which leaves no trace
        batches.start(3, 0)
        found = [[index for _, index in batch] for batch in batches]
        assert found == expected
        batches.start(3, done)
        assert [[index for _, index in batch] for batch in batches] == expected[done:]
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


def draw(sample: Any) -> Any:
    """The last step of a pipeline: one number of each generator."""
    drawn = [random.random(), np.random.standard_normal(), torch.rand((), dtype=torch.float64).item()]
    sample["drawn"] = torch.tensor(drawn, dtype=torch.float64)
    return sample


def train_config(**changes: Any) -> Any:
    """The loader of the tiny training, with images that are changed at random."""
    cfg = config.for_run(params.load(), "ghmc_ghmr", 5).train_dataloader
    [flip] = [step for step in cfg.dataset.dataset.pipeline if step.type == "RandomFlip"]
    flip.prob = 0.5
    cfg.dataset.dataset.pipeline.insert(-1, {"type": "PhotoMetricDistortion"})
    cfg.update(changes)
    return cfg


def fill(samples: Any) -> Any:
    samples.dataset.pipeline.transforms.append(draw)
    return samples


def loaded(epochs: list[int], **changes: Any) -> list[dict[str, Any]]:
    """Samples by image, for each of the epochs, of the loader that the Runner makes."""
    loader = Runner.build_dataloader(train_config(**changes), seed=5)
    fill(loader.dataset)
    sampler: Any = loader.batch_sampler
    found = []
    for epoch in epochs:
        sampler.start(epoch, 0)
        images: dict[str, Any] = {}
        for batch in loader:
            for image, sample, drawn in zip(batch["inputs"], batch["data_samples"], batch["drawn"], strict=True):
                images[sample.img_id] = (image, sample, drawn)
        found.append(images)
    return found


def same(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    boxes = [each[1].gt_instances.bboxes.tensor for each in (first, second)]
    flips = [each[1].flip for each in (first, second)]
    tensors = [(first[0], second[0]), (first[2], second[2]), tuple(boxes)]
    return flips[0] == flips[1] and all(torch.equal(*pair) for pair in tensors)


@pytest.mark.usefixtures("scope")
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_change_no_sample_of_any_epoch(persistent: bool):
    alone = loaded([0, 1, 0])
    shared = loaded([0, 1, 0], num_workers=2, persistent_workers=persistent)
    assert [len(images) for images in alone] == [24] * 3
    for one, other in zip(alone, shared, strict=True):
        assert one.keys() == other.keys()
        assert all(same(one[image], other[image]) for image in one)
    first, second, again = alone
    assert all(same(first[image], again[image]) for image in first)
    assert not any(same(first[image], second[image]) for image in first)
    # The images themselves are changed, and not all in the same way.
    assert not any(torch.equal(first[image][0], second[image][0]) for image in first)
    assert {sample.flip for _, sample, _ in first.values()} == {True, False}


def samples(seed: int = 0) -> Any:
    return fill(DATASETS.build({**train_config().dataset, "seed": seed}))


def as_tuple(sample: Any) -> tuple[Any, ...]:
    return sample["inputs"], sample["data_samples"], sample["drawn"]


@pytest.mark.usefixtures("scope")
def test_a_sample_depends_on_seed_epoch_and_number_alone():
    first, second = samples(), samples()
    places = [(epoch, index) for epoch in range(2) for index in range(6)]
    expected = {place: as_tuple(first[place]) for place in places}
    random.Random(0).shuffle(places)
    for place in places:
        random.random()
        np.random.standard_normal()
        assert same(as_tuple(second[place]), expected[place])
    numbers = [each[place]["drawn"].tolist() for each in (samples(1), second) for place in places]
    for column in zip(*numbers, strict=True):
        assert len(set(column)) == 2 * len(places)
    assert same(as_tuple(first[3]), expected[0, 3])  # without an epoch, it is the first one


def picture(height: int = 90, width: int = 120, seed: int = 0) -> Any:
    """Smooth colours with some noise: uint8 [height, width, 3]."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return np.clip(smooth + generator.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


FILES = {ending: cv2.imencode(f".{ending}", picture())[1].tobytes() for ending in ("jpg", "png", "bmp", "webp")}


def load(path: Path) -> dict[str, Any]:
    return LoadImage().transform({"img_path": str(path)})


@pytest.mark.parametrize("kind", FILES)
def test_images_are_read_bit_for_bit_as_mmcv_reads_them(tmp_path: Path, kind: str):
    path = tmp_path / "image"
    path.write_bytes(FILES[kind])
    found, expected = load(path), LoadImageFromFile().transform({"img_path": str(path)})
    assert expected and found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)
    assert found["img"].shape == (90, 120, 3) and found["img_shape"] == found["ori_shape"] == (90, 120)


class Folder:
    """A data set of one image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pipeline = Compose([LoadImage()])

    def get_data_info(self, index: int) -> dict[str, Any]:
        return {"img_id": 70 + index, "img_path": str(self.path)}


def refusal(path: Path) -> str:
    """Why an image cannot be read, from what stands in its place among the samples."""
    sample = Samples(Folder(path))[4, 2]
    assert isinstance(sample, Unreadable), sample
    assert (sample.image, sample.path) == (72, str(path))
    assert str(sample) == f"image 72 ({path}): {sample.reason}"
    return sample.reason


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory"),
        (b"", "empty"),
        (b"text, no image\n" * 20, "no image that OpenCV can decode"),
        (FILES["jpg"][:3000], "truncated"),  # half of it, which OpenCV would fill with grey
        (bytes(1000), "no image that OpenCV can decode"),
    ],
    ids=["missing", "empty", "text", "half a JPEG", "zeros"],
)
def test_what_is_no_image_is_named_with_the_reason(tmp_path: Path, content: bytes | None, words: str):
    path = tmp_path / "image.jpg"
    if content is not None:
        path.write_bytes(content)
    assert words in refusal(path)


def resized(width: int, height: int, kind: type[Any], scale: tuple[int, int] = (128, 96)) -> dict[str, Any]:
    """An image with a box on its right half, resized."""
    corners = torch.tensor([[width / 2, 0.0, width, height]])
    results = {"img": picture(height, width), "gt_bboxes": HorizontalBoxes(corners)}
    return kind(scale=scale, keep_ratio=True).transform(results)


@given(st.integers(1, 300), st.integers(1, 300))
@settings(deadline=None, max_examples=50)
def test_images_are_resized_as_mmdet_resizes_them(width: int, height: int):
    if min(int(side * 128 / max(width, height) + 0.5) for side in (width, height)) < 1:
        return
    ours, theirs = resized(width, height, Resize), resized(width, height, MMDetResize)
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours.pop("gt_bboxes").tensor, theirs.pop("gt_bboxes").tensor)
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name


@pytest.mark.parametrize(("width", "height"), [(6000, 40), (6000, 20), (3000, 1), (1, 3000), (1, 1)])
def test_a_long_and_narrow_image_keeps_a_pixel_of_each_side(width: int, height: int):
    found = resized(width, height, Resize)
    new_height, new_width = found["img"].shape[:2]
    assert min(new_height, new_width) >= 1 and max(new_height, new_width) <= 128
    assert found["img_shape"] == (new_height, new_width)
    assert found["scale_factor"] == (new_width / width, new_height / height)
    assert torch.equal(found["gt_bboxes"].tensor, torch.tensor([[new_width / 2, 0, new_width, new_height]]))


def unreadable(image: int | str, reason: str = "gone") -> Unreadable:
    return Unreadable(image, f"a/{image}.jpg", reason)


def sample(number: int) -> dict[str, Any]:
    return {"inputs": torch.full((1,), number), "data_samples": number}


@pytest.mark.usefixtures("scope")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_lost_reaches_the_training_by_name(workers: int):
    loader = Runner.build_dataloader(train_config(num_workers=workers, persistent_workers=False), seed=5)
    dataset: Any = loader.dataset
    lost = dataset.get_data_info(7)
    Path(lost["img_path"]).unlink()
    batches = list(loader)
    assert sum(len(batch["inputs"]) for batch in batches) == 23
    found = [each for batch in batches for each in batch["unreadable"]]
    assert found == [Unreadable(lost["img_id"], lost["img_path"], "No such file or directory")]


@given(st.integers(0, 6), st.lists(st.integers(0, 8), max_size=12))
@settings(deadline=None)
def test_so_many_images_may_be_left_out_and_not_one_more(most: int, images: list[int]):
    bad = BadImages(most)
    lines = [line for image in images for line in bad.add([unreadable(image)])]
    assert len(lines) == len(bad.found) == len(set(images))
    if len(set(images)) <= most:
        bad.require()
        return
    with pytest.raises(InputError) as caught:
        bad.require()
    text = str(caught.value)
    assert text.startswith(f"{count(len(set(images)), 'image')} cannot be read and data.max_bad_images is {most}: ")
    shown = [image for image in dict.fromkeys(images) if str(unreadable(image)) in text]
    assert shown == list(dict.fromkeys(images))[:3]
    assert ("..." in text) == (len(set(images)) > 3)


BATCHES = 12


class Slow:
    """A data set whose images take their time."""

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, index: int) -> int:
        signal.sigtimedwait([], 0.01)
        return index


def deliver(told: Any, signals: list[int], worker_init_fn: Callable[[int], None] | None) -> None:
    """Load all batches in a process group of its own, which gets the signals after each worker's first batch."""
    os.setsid()
    heard: list[int] = []
    for number in signals:
        signal.signal(number, lambda number, _frame: heard.append(number))
    seen = []
    loader = DataLoader(Slow(), num_workers=2, worker_init_fn=worker_init_fn)  # type: ignore[arg-type]
    for place, batch in enumerate(loader):
        seen.append(int(batch))
        if place == 1:
            for number in signals:
                os.killpg(0, number)
    told.send((seen, sorted(heard)))


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGINT, signal.SIGTERM]])
def test_workers_deliver_all_batches_when_their_process_group_is_told_to_stop(signals: list[int]):
    receiver, sender = FORK.Pipe(duplex=False)
    child = FORK.Process(target=deliver, args=(sender, signals, ignore_signals))
    child.start()
    try:
        assert receiver.poll(30)
        assert receiver.recv() == (list(range(BATCHES)), sorted(signals))
        child.join(30)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()
