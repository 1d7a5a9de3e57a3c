"""Draw a photo crop with handwritten digits and clutter on it: arrays in, arrays out, no file and no data split.

Shapes: H, W pixels of a sprite; S side of a picture. Colours are RGB in 0..255, opacities and patterns in 0..1.
Lengths in pixels are given for a picture of 128 pixels; `scale` (picture side / 128) turns them into real ones.
"""

from dataclasses import dataclass

import cv2
import numpy as np

CLUTTER = 10  # label of a sprite that looks like handwriting but is no digit
REFERENCE_SIDE = 128
PATTERN_SIDE = 8  # the scanned digits are 8x8
VISIBLE = 0.2  # opacity from which a pixel counts as part of a sprite; fainter ones cannot be seen and are cut off
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

HEIGHT_ALONE = (28.0, 64.0)
HEIGHT_CROWDED = (28.0, 36.0)
MAX_OVERLAP_DIGITS = 0.3  # of the smaller box; keeps the IoU of two boxes below 0.3 / 1.7 = 0.18
MAX_OVERLAP_CLUTTER = 0.15
CLUTTER_TRIES = 4096
CLUTTER_DISTANCE = 2.4  # from the nearest digit; a validation digit is at most 2.16 from the nearest training digit

_FIELD_SCALE = 4  # a pattern is enlarged this much with a cubic kernel, then warped with a cheap linear one
_TRIES = 25  # to find a place for a sprite


@dataclass(frozen=True)
class Material:
    """What the pictures of one split are made of."""

    patterns: np.ndarray  # float32 [N, 8, 8], ink in 0..1
    labels: np.ndarray  # int64 [N], 0..9
    clutter: np.ndarray  # float32 [M, 8, 8], ink in 0..1
    strips: tuple[np.ndarray, ...]  # parts of photos, each uint8 [H, W, 3]


@dataclass(frozen=True)
class Sprite:
    """A piece of handwriting and its place; `opacity` is cut to its visible extent, so its frame is the box."""

    opacity: np.ndarray  # float32 [H, W]
    label: int  # 0..9 or CLUTTER
    x: int = 0
    y: int = 0

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x, y, width, height in pixels, as in COCO."""
        height, width = self.opacity.shape
        return self.x, self.y, width, height


def background(rng: np.random.Generator, strips: tuple[np.ndarray, ...], side: int, scale: float) -> np.ndarray:
    """A random crop of a random strip with random zoom, flips and light: float32 [side, side, 3]."""
    strip = strips[rng.integers(len(strips))]
    crop = min(round(side / scale * rng.uniform(0.44, 0.75)), *strip.shape[:2])
    top, left = (rng.integers(length - crop + 1) for length in strip.shape[:2])
    patch = strip[top : top + crop, left : left + crop]
    upside_down, mirrored, turned = rng.random(3) < 0.5
    patch = patch[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
    patch = patch.transpose(1, 0, 2) if turned else patch
    photo = cv2.resize(np.ascontiguousarray(patch), (side, side), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    mean = photo.mean()
    light = rng.uniform(0.7, 1.1) * rng.uniform(0.85, 1.15, 3).astype(np.float32)
    return np.clip(((photo - mean) * np.float32(rng.uniform(0.7, 1.2)) + mean) * light, 0, 255)


def clutter_patterns(rng: np.random.Generator, patterns: np.ndarray) -> np.ndarray:
    """Put quarters of four digits of [N, 8, 8] together, each turned about the centre by another angle.

    The strokes are those of digits and often still meet, so that only their arrangement tells clutter from a digit.
    What could be read as one of the digits, or has less ink than any of them, is thrown away.

    Returns:
        float32 [M, 8, 8], M not much below `CLUTTER_TRIES`.
    """
    turns = rng.permuted(np.tile(np.arange(4), (CLUTTER_TRIES, 1)), axis=1)
    picks = rng.integers(len(patterns), size=(CLUTTER_TRIES, 4))
    turned = np.stack([np.rot90(patterns, times, (1, 2)) for times in range(4)])
    quarters = turned[turns, picks]  # [M, 4, 8, 8], of each only one quarter is used
    half = PATTERN_SIDE // 2
    upper = np.concatenate([quarters[:, 0, :half, :half], quarters[:, 1, :half, half:]], axis=2)
    lower = np.concatenate([quarters[:, 2, half:, :half], quarters[:, 3, half:, half:]], axis=2)
    pieces = np.concatenate([upper, lower], axis=1)
    flat, digits = pieces.reshape(len(pieces), -1), patterns.reshape(len(patterns), -1)
    # [M, N]; exact on every machine, since the ink comes in steps of 1/16
    squares = np.square(flat).sum(1)[:, None] + np.square(digits).sum(1) - 2 * flat @ digits.T
    return pieces[(squares.min(1) >= CLUTTER_DISTANCE**2) & (flat.sum(1) >= digits.sum(1).min())]


def write_pattern(rng: np.random.Generator, pattern: np.ndarray, height: float) -> np.ndarray:
    """Enlarge an 8x8 pattern to smooth strokes about `height` pixels high, slightly turned and sheared.

    Returns:
        Opacity in 0..1, float32 [H, W], cut to its visible extent.
    """
    angle, shear, aspect = rng.uniform(-0.12, 0.12), rng.uniform(-0.1, 0.1), rng.uniform(0.9, 1.1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    bordered = cv2.copyMakeBorder(pattern, 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    field = cv2.resize(bordered, None, fx=_FIELD_SCALE, fy=_FIELD_SCALE, interpolation=cv2.INTER_CUBIC)
    side = int(1.7 * height) + 4  # room for the corners of the turned pattern
    matrix = np.empty((2, 3))
    matrix[:, :2] = turn @ np.array([[aspect, shear], [0, 1]]) * height / (PATTERN_SIDE * _FIELD_SCALE)
    matrix[:, 2] = (side - 1) / 2 - matrix[:, :2].sum(1) * (len(field) - 1) / 2
    ink = cv2.warpAffine(field, matrix, (side, side), flags=cv2.INTER_LINEAR)
    edge = rng.uniform(0.28, 0.42)  # a low edge makes a broad pen
    opacity = np.clip((ink - edge) / 0.3, 0, 1)
    left, top, width, high = cv2.boundingRect((opacity > VISIBLE).astype(np.uint8))
    return opacity[top : top + high, left : left + width]


def digit(rng: np.random.Generator, material: Material, height: float) -> Sprite:
    """A random digit, not placed yet; `height` in pixels."""
    index = rng.integers(len(material.labels))
    return Sprite(write_pattern(rng, material.patterns[index], height), int(material.labels[index]))


def clutter(rng: np.random.Generator, material: Material, height: float) -> Sprite:
    """A random piece of clutter, not placed yet; `height` in pixels."""
    return Sprite(write_pattern(rng, material.clutter[rng.integers(len(material.clutter))], height), CLUTTER)


def overlap(a: Sprite, b: Sprite) -> float:
    """Intersection of two boxes over the area of the smaller one."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a.box, b.box
    wide = max(0, min(ax + aw, bx + bw) - max(ax, bx))
    high = max(0, min(ay + ah, by + bh) - max(ay, by))
    return wide * high / min(aw * ah, bw * bh)


def place(
    rng: np.random.Generator, sprite: Sprite, others: list[Sprite], side: int, max_overlap: float
) -> Sprite | None:
    """Put a sprite inside the picture where it covers the others little; None when no such place was found."""
    height, width = sprite.opacity.shape
    if height > side or width > side:
        return None
    corners = rng.integers((side - width + 1, side - height + 1), size=(_TRIES, 2))
    for x, y in corners.tolist():
        placed = Sprite(sprite.opacity, sprite.label, x, y)
        if all(overlap(placed, other) <= max_overlap for other in others):
            return placed
    return None


def layout(rng: np.random.Generator, material: Material, side: int) -> list[Sprite]:
    """Choose what a picture shows, in drawing order: clutter below, digits above.

    One picture in ten has no digit, one in five is crowded with 5 to 8 small ones, the others have 1 to 4.
    """
    scale = side / REFERENCE_SIDE
    kind = rng.random()
    crowded = kind < 0.2
    heights = HEIGHT_CROWDED if crowded else HEIGHT_ALONE
    wanted = rng.integers(5, 9) if crowded else 0 if kind > 0.9 else rng.integers(1, 5)
    digits: list[Sprite] = []
    for _ in range(wanted):
        sprite = digit(rng, material, rng.uniform(*heights) * scale)
        digits += filter(None, [place(rng, sprite, digits, side, MAX_OVERLAP_DIGITS)])
    pieces: list[Sprite] = []
    for _ in range(rng.integers(3)):
        sprite = clutter(rng, material, rng.uniform(*heights) * scale)
        pieces += filter(None, [place(rng, sprite, digits + pieces, side, MAX_OVERLAP_CLUTTER)])
    return pieces + digits


def crop_layout(
    rng: np.random.Generator, material: Material, shown: Material | None, side: int, scale: float
) -> list[Sprite]:
    """Choose what a crop for a classifier shows: one digit of `shown`, if any, and up to two pieces of clutter."""
    low, high = (min(height * scale, 0.8 * side) for height in HEIGHT_ALONE)
    sprites: list[Sprite] = []
    while shown is not None and not sprites:  # a wide digit may not fit a small crop
        sprites += filter(None, [place(rng, digit(rng, shown, rng.uniform(low, high)), [], side, 0.0)])
    for _ in range(rng.integers(3)):
        piece = clutter(rng, material, rng.uniform(low, high))
        sprites += filter(None, [place(rng, piece, sprites, side, MAX_OVERLAP_CLUTTER)])
    return sprites[::-1]


def ink_colour(rng: np.random.Generator, under_HW3: np.ndarray) -> np.ndarray:
    """A random colour that stands out from what lies under a sprite: float32 [3].

    The distance in brightness grows with the variation of the background, so that people can still read the digit.
    """
    luma = under_HW3 @ LUMA
    mean, spread = float(luma.mean()), float(luma.std())
    distance = rng.uniform(65, 130) + 0.8 * spread
    both_fit = distance <= min(mean, 255 - mean)
    lighter = rng.random() < 0.5 if both_fit else mean < 127.5
    target = mean + distance if lighter else mean - distance
    tint = rng.uniform(-60, 60, 3).astype(np.float32)
    return np.clip(target + tint - tint @ LUMA, 0, 255)


def draw(rng: np.random.Generator, canvas: np.ndarray, sprites: list[Sprite]) -> None:
    """Paint the sprites, each in one random colour, in order onto `canvas`, float32 [S, S, 3], in place."""
    for sprite in sprites:
        x, y, width, height = sprite.box
        under = canvas[y : y + height, x : x + width]
        under += (ink_colour(rng, under) - under) * sprite.opacity[..., None]


def develop(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Blur slightly, add the noise of a camera and round: float32 -> uint8, same shape."""
    blurred = cv2.GaussianBlur(canvas, (5, 5), rng.uniform(0.3, 0.9))
    noise = rng.standard_normal((*canvas.shape[:2], 1), np.float32) * np.float32(rng.uniform(2, 6))
    return np.clip(np.rint(blurred + noise), 0, 255).astype(np.uint8)
