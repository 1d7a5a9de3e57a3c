"""Batches of training images: which come together, how they are put together, and how they come to the device.

Shapes: B images, H x W pixels, R = 3 W numbers of a row.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import cv2
import torch
from mmengine.config import Config
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ghm.registry import DATASETS
from ghm.targets import Truth
from ghm.training.processes import Processes
from ghm.training.samples import Sample, Unreadable

MEMORY = 2**30  # bytes at most for images that are decoded once, of all worker processes together
SHARE = 8  # and that part of the computer's


@dataclass(frozen=True)
class Batch:
    """Images that the network gets at once, padded with zeros to the same size, and their true boxes."""

    pixel_BHW3: Tensor  # R, G, B, uint8 or float32
    size_B2: Tensor  # height and width of each image, int64
    truth: Truth
    paths: list[str]
    unreadable: list[Unreadable]  # in place of further images

    def pin_memory(self) -> "Batch":
        """In memory that a GPU can copy from by itself."""
        pixels, sizes = self.pixel_BHW3.pin_memory(), self.size_B2.pin_memory()
        return replace(self, pixel_BHW3=pixels, size_B2=sizes, truth=self.truth.pin_memory())

    def __len__(self) -> int:
        return len(self.paths)


def collate(samples: Sequence[Sample | Unreadable], divisor: int = 32) -> Batch:
    """Put images together. `divisor`: the sides that the network gets are multiples of it."""
    read = [sample for sample in samples if isinstance(sample, Sample)]
    unreadable = [sample for sample in samples if isinstance(sample, Unreadable)]
    size_B2 = torch.tensor([sample.pixel_HW3.shape[:2] for sample in read]).reshape(-1, 2)
    padded_B2 = (size_B2 + divisor - 1) // divisor * divisor
    height, width = padded_B2.amax(0).tolist() if read else (0, 0)
    pixels = [sample.pixel_HW3 for sample in read]
    if len({(image.shape, image.dtype) for image in pixels}) == 1 and pixels[0].shape[:2] == (height, width):
        pixel_BHW3 = torch.stack(pixels)
    else:
        dtype = torch.uint8 if all(image.dtype == torch.uint8 for image in pixels) else torch.float32
        pixel_BHW3 = torch.zeros(len(read), height, width, 3, dtype=dtype)
        for place, image in zip(pixel_BHW3, pixels, strict=True):
            place[: image.shape[0], : image.shape[1]] = image
    boxes = max([1, *(len(sample.label_N) for sample in read)])
    box_BG4, label_BG = torch.zeros(len(read), boxes, 4), torch.full((len(read), boxes), -1)
    for number, sample in enumerate(read):
        box_BG4[number, : len(sample.label_N)] = sample.box_N4
        label_BG[number, : len(sample.label_N)] = sample.label_N
    truth = Truth(box_BG4, label_BG, padded_B2)
    return Batch(pixel_BHW3, size_B2, truth, [sample.path for sample in read], unreadable)


def prepare(detector: Any, batch: Batch) -> tuple[Tensor, Truth]:
    """What the detector is trained on: [B, 3, H, W], normalised, 0 where an image is padded; and boxes, on its device.

    Nothing here waits for the device.
    """
    processor, (height, width) = detector.data_preprocessor, batch.pixel_BHW3.shape[1:3]
    device = processor.mean.device
    # Of a whole row at once: a loop over three channels is slow on a CPU.
    mean_R, std_R = (value.flatten().repeat(width) for value in (processor.mean, processor.std))
    row_BHR = (batch.pixel_BHW3.to(device, non_blocking=True).flatten(2) - mean_R).div_(std_R)
    image_B3HW = row_BHR.unflatten(2, (width, 3)).permute(0, 3, 1, 2)
    if batch.size_B2.tolist() != [[height, width]] * len(batch):
        size_B211 = batch.size_B2.to(device, non_blocking=True)[:, :, None, None]
        row_H1, column_W = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
        image_B3HW.masked_fill_((row_H1 >= size_B211[:, :1]) | (column_W >= size_B211[:, 1:]), 0.0)
    return image_B3HW, batch.truth.to(device)


class Batches(Sampler[list[tuple[int, int]]]):
    """Which images come together, from any step of an epoch on: (epoch, index) of each.

    An epoch has each image once, in an order that depends on seed and epoch; the processes take turns, and the first
    images come twice where their number does not divide. The images of a batch are all wide or all high, but for the
    last of an epoch.

    Args:
        images: a data set of mmengine.
    """

    def __init__(self, images: Any, batch_size: int, seed: int, processes: Processes) -> None:
        self.batch_size, self.seed, self.processes = batch_size, seed, processes
        infos = map(images.get_data_info, range(len(images)))
        self.is_high = [info["width"] < info["height"] for info in infos]
        self.epoch = self.done = 0

    def start(self, epoch: int, done: int) -> None:
        """Begin the next iteration in `epoch`, after `done` batches."""
        self.epoch, self.done = epoch, done

    def __len__(self) -> int:
        return -(-len(self._order()) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in islice(self._batches(), self.done, None):
            yield [(self.epoch, index) for index in batch]

    def _order(self) -> list[int]:
        """The images of this process, in the order of the epoch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.is_high), generator=generator).tolist()
        world_size = self.processes.world_size
        missing = -len(order) % world_size
        while missing:  # more than once where there are fewer images than processes
            order += order[:missing]
            missing = -len(order) % world_size
        return order[self.processes.rank :: world_size]

    def _batches(self) -> Iterator[list[int]]:
        groups: tuple[list[int], list[int]] = ([], [])
        for index in self._order():
            group = groups[self.is_high[index]]
            group.append(index)
            if len(group) == self.batch_size:
                yield group.copy()
                group.clear()
        rest = groups[True] + groups[False]
        yield from (rest[first : first + self.batch_size] for first in range(0, len(rest), self.batch_size))


def loader(cfg: Config, processes: Processes) -> Any:
    """The data loader of a training run, whose `batch_sampler` is `Batches`.

    Args:
        cfg: of the run.
        processes: that share it.
    """
    cv2.setNumThreads(0)  # workers are forked, and find OpenCV's threads gone
    settings, parts = cfg.train_dataloader, processes.world_size * cfg.accumulate
    images: Any = DATASETS.build(settings.dataset)
    workers = settings.num_workers
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // SHARE
    images.memory = min(MEMORY, memory) // (processes.world_size * max(1, workers))
    batches = Batches(images, settings.batch_size // parts, cfg.randomness.seed, processes)
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
        worker_init_fn=_ignore_signals,
        pin_memory=torch.cuda.is_available(),
    )


def _ignore_signals(_worker: int) -> None:
    """For worker processes: the training process takes its last step and ends its workers itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
