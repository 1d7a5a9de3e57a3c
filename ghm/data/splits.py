"""Splits made for a data set that lacks them: by class, seeded, images that belong together in one of them.

Together stay: copies that an augmentation made of one image (`<name>.rf.<hash>`, Roboflow's); images that look alike,
by a difference hash; and neighbours in a series, `frame_7` and `frame_8`, that look somewhat alike. The hash has 128
bits: whether the brightness grows to the right, and downwards, on a grid of 8 x 8. Of unrelated photographs about 64
differ.

Groups are dealt out by iterative stratification (Sechidis et al. 2011): the images of the rarest class first, each to
the split that lacks most of that class.
"""

import contextlib
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from ghm.data.annotations import Annotations
from ghm.data.layouts.tree import Tree
from ghm.errors import InputError
from ghm.words import count

ALIKE = 7  # bits of the hash that may differ
NEIGHBOURS_ALIKE = 24  # the same for neighbours in a series
_BANDS = ALIKE + 1  # of 16 bits: of two hashes that differ in 7 bits, one band is the same
_PAIRS = 2_000_000  # compared at a time
_SERIES = re.compile(r"(.*?)(\d+)(?:_(?:jpe?g|png))?$")


def make(
    tree: Tree, content: Annotations, shares: dict[str, float], seed: int, earlier: dict[str, str]
) -> dict[str, str]:
    """Deal out the images of `content`.

    Args:
        tree: the folder of the images; its notes get what is worth saying.
        content: all images that can be dealt out, with boxes.
        shares: split -> its share of the images; `train` gets the rest.
        seed: of the order of images that are the same in all else.
        earlier: name -> split of images that stay where they are. What is like one of them goes to its split, to
            `train` before others.

    Returns:
        Name -> split of all images.

    Raises:
        InputError: the images belong together so much that a split gets none.
    """
    names = sorted(image.file_name for image in content.images)
    if earlier.keys() >= {*names}:
        return {name: earlier[name] for name in names}
    group_N = _groups(names, _hashes(tree.root, names))
    sizes = np.bincount(group_N)
    if sizes.max() > (1 - sum(shares.values())) * len(names):
        tree.notes.append(
            f"{sizes.max():,} of {len(names):,} images look alike, as those of a fixed camera do: only copies are kept "
            "in one split; make splits of your own if images of one scene must not be in two"
        )
        group_N = _groups(names, _hashes(tree.root, names, of_pixels=False))
    alone = int((np.bincount(group_N) == 1).sum())
    groups = int(group_N.max()) + 1
    tree.notes.append(f"{count(groups, 'group')} of images that stay together, {alone:,} of one image")
    order = ["train", *shares]
    fixed_N = [order.index(earlier[name]) if name in earlier else -1 for name in names]
    share_S = np.array([1 - sum(shares.values()), *shares.values()])
    dealt_N = _deal(_counts(names, content, group_N), group_N, np.array(fixed_N), share_S, seed)
    for index, split in enumerate(order):
        if not (dealt_N == index).any():
            raise InputError(
                f"custom: no {split} split can be made of {count(len(names), 'image')} in "
                f"{count(groups, 'group')} that stay together: give more images, or a split of your own"
            )
    return {name: order[index] for name, index in zip(names, dealt_N.tolist(), strict=True)}


def _hashes(root: Path, names: list[str], *, of_pixels: bool = True) -> np.ndarray:
    """The hashes of images, uint64 [N, 2]; else of the bytes of their files, in which only copies are alike."""

    def one(name: str) -> bytes:
        bits = np.zeros(16, np.uint8)
        with contextlib.suppress(OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # `validation` tells
            if of_pixels:
                with Image.open(root / name) as image:
                    image.draft("L", (36, 36))
                    grid = np.asarray(image.convert("L").resize((9, 9), Image.Resampling.BOX))
                bits = np.packbits([grid[:8, 1:] > grid[:8, :8], grid[1:, :8] > grid[:8, :8]])
        if bits.any():
            return bits.tobytes()
        path = root / name  # an even surface, or no image that can be read
        return hashlib.sha256(path.read_bytes() if path.is_file() else name.encode()).digest()[:16]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = tqdm(pool.map(one, names), "comparing images", len(names), unit="image", delay=1, leave=False)
        return np.frombuffer(b"".join(done), np.uint64).reshape(-1, 2)


def _groups(names: list[str], hash_N2: np.ndarray) -> np.ndarray:
    """The group of each image, int [N]."""
    pairs: list[tuple[int, int]] = []
    first: dict[str, int] = {}
    series: dict[str, list[tuple[int, int]]] = {}
    for index, name in enumerate(names):
        stem, copied, _ = name.partition(".rf.")
        if copied:
            pairs.append((first.setdefault(stem, index), index))
        if match := _SERIES.fullmatch(stem if copied else stem.rpartition(".")[0]):
            series.setdefault(match[1], []).append((int(match[2]), index))
    ordered = [[index for _, index in sorted(members)] for members in series.values()]
    next_P2 = np.array([pair for row in ordered for pair in pairwise(row)], dtype=int).reshape(-1, 2)
    are_alike_P = _difference(hash_N2[next_P2[:, 0]], hash_N2[next_P2[:, 1]]) <= NEIGHBOURS_ALIKE
    copy_P2 = np.array(pairs, dtype=int).reshape(-1, 2)
    return _joined(_alike(hash_N2), np.concatenate([copy_P2, next_P2[are_alike_P]]))


def _joined(group_N: np.ndarray, pair_P2: np.ndarray) -> np.ndarray:
    """The groups, int [N], when those of each pair become one."""
    _, first_G, group_N = np.unique(group_N, return_index=True, return_inverse=True)
    edge_E2 = np.concatenate([pair_P2, np.stack([first_G[group_N], np.arange(len(group_N))], axis=1)])
    shape = len(group_N), len(group_N)
    return connected_components(coo_matrix((np.ones(len(edge_E2), bool), edge_E2.T), shape), directed=False)[1]


def _difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The bits that differ between hashes [..., 2]."""
    return np.bitwise_count(one ^ other).sum(axis=-1)


def _alike(hash_N2: np.ndarray) -> np.ndarray:
    """The groups of images that look alike, one or more steps away: int [N]."""
    hash_U2, unique_N = np.unique(hash_N2, axis=0, return_inverse=True)
    group_U, found, waiting = np.arange(len(hash_U2)), [np.zeros((0, 2), int)], 0
    for band_U in np.ascontiguousarray(hash_U2).view(np.uint16).reshape(-1, _BANDS).T:
        order_U = np.argsort(band_U, kind="stable")
        runs = np.split(order_U, np.flatnonzero(np.diff(band_U[order_U])) + 1)
        parts = ((run, start) for run in runs if len(run) > 1 for start in range(0, len(run), 1 + _PAIRS // len(run)))
        for run, start in parts:
            part, rest = run[start : start + 1 + _PAIRS // len(run)], run[start:]
            if np.ptp(group_U[part]) == 0:  # what is in a group already need not be found again
                rest = rest[group_U[rest] != group_U[part[0]]]
            one, other = np.nonzero(_difference(hash_U2[part, None], hash_U2[None, rest]) <= ALIKE)
            found.append(np.stack([part[one], rest[other]], axis=1))
            waiting += len(one)
            if waiting > _PAIRS // 10:
                group_U, found, waiting = _joined(group_U, np.concatenate(found)), found[:1], 0
    return _joined(group_U, np.concatenate(found))[unique_N]


def _counts(names: list[str], content: Annotations, group_N: np.ndarray) -> np.ndarray:
    """How many images of each group hold each class; the last column: how many there are. Int [G, C + 1]."""
    row, column = (
        {key: index for index, key in enumerate(keys)} for keys in (names, (c.id for c in content.categories))
    )
    of_image = {image.id: row[image.file_name] for image in content.images}
    held = {(of_image[box.image_id], column[box.category_id]) for box in content.annotations}
    count_GC = np.zeros((group_N.max() + 1, len(column) + 1), int)
    image, label = np.array(sorted(held), dtype=int).reshape(-1, 2).T
    np.add.at(count_GC, (group_N[image], label), 1)
    count_GC[:, -1] = np.bincount(group_N)
    return count_GC


def _deal(count_GC: np.ndarray, group_N: np.ndarray, fixed_N: np.ndarray, share_S: np.ndarray, seed: int) -> np.ndarray:
    """The split of each image, int [N]; `fixed_N` is -1 where it is free. Shapes: S splits."""
    groups, splits = len(count_GC), len(share_S)
    split_G = np.full(groups, splits)
    held = fixed_N >= 0
    np.minimum.at(split_G, group_N[held], fixed_N[held])  # train is the first
    is_free_G = split_G == splits
    lack_SC = share_S[:, None] * count_GC.sum(axis=0)
    np.subtract.at(lack_SC, split_G[~is_free_G], count_GC[~is_free_G])
    order_G = np.random.default_rng(seed).permutation(groups)
    while is_free_G.any():
        left_C = count_GC[is_free_G].sum(axis=0)
        rarest = min(np.flatnonzero(left_C), key=lambda column: (column == len(left_C) - 1, left_C[column]))
        members = order_G[is_free_G[order_G] & (count_GC[order_G, rarest] > 0)]
        for group in members[np.argsort(-count_GC[members, rarest], kind="stable")]:
            split = max(range(splits), key=lambda index: (lack_SC[index, rarest], lack_SC[index, -1]))
            split_G[group] = split
            lack_SC[split] -= count_GC[group]
        is_free_G[members] = False
    return np.where(held, fixed_N, split_G[group_N])
