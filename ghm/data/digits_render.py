"""Draw a photo crop with handwritten digits and clutter on it: no file and no data split.

Shapes: H, W pixels of a sprite; S side of a picture. Colours are RGB in 0..255. Lengths in pixels are given for a
picture of 128 pixels; `scale` (picture side / 128) turns them into real ones.

The same pictures come out on every processor: arrays hold whole numbers, and fractions are floats of Python that meet
nothing but + - * / and square roots, which IEEE 754 rounds in one way. Pillow works in fixed point; coefficients that
it uses as floats are rounded first. So no `rng.uniform`, `rng.standard_normal`, `sin`, `exp`, no sums of floats.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

CLUTTER = 10  # label of a sprite that looks like handwriting but is no digit
REFERENCE_SIDE = 128
PATTERN_SIDE = 8  # the scanned digits are 8x8
PATTERN_INK = 16  # the most ink in a pixel of a scanned digit
VISIBLE = 0.2  # opacity from which a pixel counts as part of a sprite; fainter ones cannot be seen and are cut off
LUMA = (0.299, 0.587, 0.114)

HEIGHT_ALONE = (28.0, 64.0)
HEIGHT_CROWDED = (28.0, 36.0)
MAX_OVERLAP_DIGITS = 0.3  # of the smaller box; keeps the IoU of two boxes below 0.3 / 1.7 = 0.18
MAX_OVERLAP_CLUTTER = 0.15
CLUTTER_TRIES = 4096
CLUTTER_DISTANCE = 2.4  # from the nearest digit; a validation digit is at most 2.16 from the nearest training digit

_FIELD_SCALE = 4  # a pattern is enlarged this much with a cubic kernel, then warped with a cheap linear one
_FULL_INK = 208  # `PATTERN_INK` on an enlarged pattern, below 255 because the cubic kernel overshoots
_EDGE = (0.28, 0.42)  # share of full ink where a stroke begins; a low edge makes a broad pen
_SLOPE = 4  # opacity, 0..255, per unit of enlarged ink above the edge: opaque after 0.3 of full ink
_TRIES = 25  # to find a place for a sprite

Box = tuple[int, int, int, int]  # x, y, width, height in pixels, as in COCO


@dataclass(frozen=True)
class Material:
    """What the pictures of one split are made of."""

    patterns: np.ndarray  # uint8 [N, 8, 8], ink in 0..16
    labels: np.ndarray  # int64 [N], 0..9
    clutter: np.ndarray  # uint8 [M, 8, 8], ink in 0..16
    strips: tuple[np.ndarray, ...]  # parts of photos, each uint8 [H, W, 3]


@dataclass(frozen=True)
class Sprite:
    """A piece of handwriting and its place; `opacity` is cut to its visible extent, so its frame is the box."""

    opacity: np.ndarray  # uint8 [H, W]
    label: int  # 0..9 or CLUTTER
    x: int = 0
    y: int = 0

    @property
    def box(self) -> Box:
        """x, y, width, height in pixels, as in COCO."""
        height, width = self.opacity.shape
        return self.x, self.y, width, height


def background(rng: np.random.Generator, strips: tuple[np.ndarray, ...], side: int, scale: float) -> Image.Image:
    """A random crop of a random strip with random zoom, flips and light: RGB, S x S."""
    strip = strips[rng.integers(len(strips))]
    crop = min(round(side / scale * _uniform(rng, 0.44, 0.75)), *strip.shape[:2])
    top, left = (rng.integers(length - crop + 1) for length in strip.shape[:2])
    patch = strip[top : top + crop, left : left + crop]
    upside_down, mirrored, turned = rng.random(3) < 0.5
    patch = patch[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
    patch = np.ascontiguousarray(patch.transpose(1, 0, 2) if turned else patch)
    mean = int(patch.sum()) / patch.size
    light, contrast = _uniform(rng, 0.7, 1.1), _uniform(rng, 0.7, 1.2)
    matrix: list[float] = []
    for channel in range(3):
        gain = light * _uniform(rng, 0.85, 1.15)
        row = [0.0, 0.0, 0.0, _rounded(gain * (mean - mean * contrast), 256)]
        row[channel] = _rounded(gain * contrast, 256)
        matrix += row
    photo = Image.fromarray(patch).convert("RGB", tuple(matrix))
    return photo.resize((side, side), Image.Resampling.BICUBIC)


def clutter_patterns(rng: np.random.Generator, patterns: np.ndarray) -> np.ndarray:
    """Put quarters of four digits of [N, 8, 8] together, each turned about the centre by another angle.

    The strokes are those of digits and often still meet, so that only their arrangement tells clutter from a digit.
    What could be read as one of the digits, or has less ink than any of them, is thrown away.

    Returns:
        uint8 [M, 8, 8], M not much below `CLUTTER_TRIES`.
    """
    turns = rng.permuted(np.tile(np.arange(4), (CLUTTER_TRIES, 1)), axis=1)
    picks = rng.integers(len(patterns), size=(CLUTTER_TRIES, 4))
    turned = np.stack([np.rot90(patterns, times, (1, 2)) for times in range(4)])
    quarters = turned[turns, picks]  # [M, 4, 8, 8], of each only one quarter is used
    half = PATTERN_SIDE // 2
    upper = np.concatenate([quarters[:, 0, :half, :half], quarters[:, 1, :half, half:]], axis=2)
    lower = np.concatenate([quarters[:, 2, half:, :half], quarters[:, 3, half:, half:]], axis=2)
    pieces = np.concatenate([upper, lower], axis=1)
    # Whole numbers below 2^24, exact in float32 in whatever order they are summed, and multiplied faster than integers.
    flat, digits = (scans.reshape(len(scans), -1).astype(np.float32) for scans in (pieces, patterns))
    squares = np.square(flat).sum(1)[:, None] + np.square(digits).sum(1) - 2 * flat @ digits.T  # [M, N]
    nearest = CLUTTER_DISTANCE * PATTERN_INK
    return pieces[(squares.min(1) >= nearest * nearest) & (flat.sum(1) >= digits.sum(1).min())]


def write_pattern(rng: np.random.Generator, pattern: np.ndarray, height: float) -> np.ndarray:
    """Enlarge an 8x8 pattern to smooth strokes about `height` pixels high, slightly turned and sheared.

    Returns:
        Opacity, uint8 [H, W], cut to its visible extent.
    """
    turn, shear, aspect = _uniform(rng, -0.06, 0.06), _uniform(rng, -0.1, 0.1), _uniform(rng, 0.9, 1.1)
    edge = round(_FULL_INK * _uniform(rng, *_EDGE))
    field = _enlarged(pattern.tobytes())
    # `turn` is the tangent of half the angle: sine and cosine without a library's.
    cosine = (1 - turn * turn) / (1 + turn * turn)
    sine = 2 * turn / (1 + turn * turn)
    wide, high = int(1.5 * height) + 2, int(1.3 * height) + 2  # room for the corners of the turned pattern
    zoom = PATTERN_SIDE * _FIELD_SCALE / height
    warp: list[float] = []  # from the picture back to the field
    for across, down in (((cosine + shear * sine) / aspect, (sine - shear * cosine) / aspect), (-sine, cosine)):
        across, down = _rounded(across * zoom, 4096), _rounded(down * zoom, 4096)
        warp += [across, down, (field.width - wide * across - high * down) / 2]
    ink = np.asarray(field.transform((wide, high), Image.Transform.AFFINE, warp, Image.Resampling.BILINEAR))
    seen = ink > edge + int(255 * VISIBLE / _SLOPE)
    rows, columns = (np.flatnonzero(seen.any(axis)) for axis in (1, 0))
    over = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] - np.int16(edge)
    return (over * _SLOPE).clip(0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=8192)  # a split has about 5000 patterns, and uses each of them several times
def _enlarged(pattern: bytes) -> Image.Image:
    bordered = np.zeros((PATTERN_SIDE + 2, PATTERN_SIDE + 2), np.uint8)
    bordered[1:-1, 1:-1] = np.frombuffer(pattern, np.uint8).reshape(PATTERN_SIDE, -1) * (_FULL_INK // PATTERN_INK)
    side = len(bordered) * _FIELD_SCALE
    return Image.fromarray(bordered).resize((side, side), Image.Resampling.BICUBIC)


def digit(rng: np.random.Generator, material: Material, height: float) -> Sprite:
    """A random digit, not placed yet; `height` in pixels."""
    index = rng.integers(len(material.labels))
    return Sprite(write_pattern(rng, material.patterns[index], height), int(material.labels[index]))


def clutter(rng: np.random.Generator, material: Material, height: float) -> Sprite:
    """A random piece of clutter, not placed yet; `height` in pixels."""
    return Sprite(write_pattern(rng, material.clutter[rng.integers(len(material.clutter))], height), CLUTTER)


def overlap(a: Box, b: Box) -> float:
    """Intersection of two boxes over the area of the smaller one."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
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
    taken = [other.box for other in others]
    lefts, tops = (rng.integers(side - length + 1, size=_TRIES).tolist() for length in (width, height))
    for x, y in zip(lefts, tops, strict=True):
        if all(overlap((x, y, width, height), box) <= max_overlap for box in taken):
            return Sprite(sprite.opacity, sprite.label, x, y)
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
        sprite = digit(rng, material, _uniform(rng, *heights) * scale)
        digits += filter(None, [place(rng, sprite, digits, side, MAX_OVERLAP_DIGITS)])
    pieces: list[Sprite] = []
    for _ in range(rng.integers(3)):
        sprite = clutter(rng, material, _uniform(rng, *heights) * scale)
        pieces += filter(None, [place(rng, sprite, digits + pieces, side, MAX_OVERLAP_CLUTTER)])
    return pieces + digits


def crop_layout(
    rng: np.random.Generator, material: Material, shown: Material | None, side: int, scale: float
) -> list[Sprite]:
    """Choose what a crop for a classifier shows: one digit of `shown`, if any, and up to two pieces of clutter."""
    low, high = (min(height * scale, 0.8 * side) for height in HEIGHT_ALONE)
    sprites: list[Sprite] = []
    while shown is not None and not sprites:  # a wide digit may not fit a small crop
        sprites += filter(None, [place(rng, digit(rng, shown, _uniform(rng, low, high)), [], side, 0.0)])
    for _ in range(rng.integers(3)):
        piece = clutter(rng, material, _uniform(rng, low, high))
        sprites += filter(None, [place(rng, piece, sprites, side, MAX_OVERLAP_CLUTTER)])
    return sprites[::-1]


def ink_colour(rng: np.random.Generator, under: Image.Image) -> tuple[int, ...]:
    """A random colour that stands out from what lies under a sprite.

    The distance in brightness grows with the variation of the background, so that people can still read the digit.
    """
    luma = np.asarray(under.convert("L"), np.int64).ravel()
    total, squares = int(luma.sum()), int(luma @ luma)
    mean, spread = total / luma.size, math.sqrt(luma.size * squares - total * total) / luma.size
    distance = _uniform(rng, 65, 130) + 0.8 * spread
    both_fit = distance <= min(mean, 255 - mean)
    lighter = rng.random() < 0.5 if both_fit else mean < 127.5
    target = mean + distance if lighter else mean - distance
    tint = [_uniform(rng, -60, 60) for _ in range(3)]
    target -= tint[0] * LUMA[0] + tint[1] * LUMA[1] + tint[2] * LUMA[2]
    return tuple(min(max(round(target + channel), 0), 255) for channel in tint)


def draw(rng: np.random.Generator, canvas: Image.Image, sprites: list[Sprite]) -> None:
    """Paint the sprites, each in one random colour, in order onto `canvas`, RGB, in place."""
    for sprite in sprites:
        x, y, width, height = sprite.box
        frame = (x, y, x + width, y + height)
        canvas.paste(ink_colour(rng, canvas.crop(frame)), frame, Image.fromarray(sprite.opacity))


def develop(rng: np.random.Generator, canvas: Image.Image) -> np.ndarray:
    """Blur slightly and add the noise of a camera: uint8 [S, S, 3]."""
    photo = _blurred(np.asarray(canvas), _uniform(rng, 0.0, 0.2))
    height, width, channels = photo.shape
    # The sum of four bytes is nearly normal, with mean 510 and standard deviation 147.8.
    four = np.frombuffer(rng.bytes(4 * height * width), np.uint8).reshape(4, height * width)
    strength = round(2**16 / 147.8 * _uniform(rng, 2, 6))
    grain = (four.sum(0, dtype=np.int32) * strength + (2**15 - 510 * strength)) >> 16
    photo += grain.astype(np.int16).repeat(channels).reshape(photo.shape)
    return photo.clip(0, 255, out=photo).astype(np.uint8)


def _blurred(photo: np.ndarray, spread: float) -> np.ndarray:
    """Convolve both axes twice with `spread`, 1 - 2 `spread`, `spread`: uint8 [S, S, 3] -> int16, same shape."""
    far, near = round(256 * spread * spread), round(512 * spread * (1 - 2 * spread))

    def weigh(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, e: np.ndarray) -> np.ndarray:
        total = c * np.uint16(256 - 2 * near - 2 * far)  # at most 255 * 256 with what is added
        total += (b + d) * np.uint16(near)
        total += (a + e) * np.uint16(far)
        total += np.uint16(128)
        total >>= np.uint16(8)
        return total

    side = len(photo)
    mirrored = np.concatenate([photo[2:0:-1], photo, photo[-2:-4:-1]]).astype(np.uint16)
    photo = weigh(*(mirrored[start : start + side] for start in range(5)))
    mirrored = np.concatenate([photo[:, 2:0:-1], photo, photo[:, -2:-4:-1]], axis=1)
    return weigh(*(mirrored[:, start : start + side] for start in range(5))).view(np.int16)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """As `rng.uniform`, whose compiled product and sum are rounded once on one processor and twice on another."""
    return low + (high - low) * rng.random()


def _rounded(number: float, parts: int) -> float:
    """To a multiple of 1 / `parts`, a power of two: then the floats that Pillow computes with it are exact."""
    return round(number * parts) / parts
