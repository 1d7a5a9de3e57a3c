"""Fonts of this machine for letters that the standard one lacks, such as Chinese ones and emoji."""

import logging
from collections.abc import Iterable
from functools import cache

from matplotlib.font_manager import FontEntry, fontManager
from matplotlib.ft2font import FT2Font

STANDARD = "DejaVu Sans"  # comes with matplotlib: the same letters on every machine
_log = logging.getLogger(__name__)


def covering(texts: Iterable[str]) -> list[FontEntry]:
    """STANDARD, and after it the font that has most of the letters of `texts` that STANDARD lacks.

    Letters that neither has are warned of, once.
    """
    # The Last Resort font has a box for every letter.
    fonts = [entry for entry in fontManager.ttflist if not entry.name.startswith("Last Resort")]
    fonts.sort(key=lambda entry: (entry.weight != 400, entry.style != "normal", entry.name))
    standard = next(entry for entry in fonts if entry.name == STANDARD)
    wanted = {letter for text in texts for letter in text if letter.isprintable()}
    missing = wanted - _letters(standard, wanted)
    if not missing:
        return [standard]
    best = max(fonts, key=lambda entry: len(_letters(entry, missing)))
    if without := missing - _letters(best, missing):
        _warn(" ".join(sorted(without)[:10]))
    return [standard, best]


@cache
def most_of(text: str) -> str:
    """The file of the font that has most letters of a text, STANDARD where that is no matter."""
    return max(covering([text]), key=lambda entry: len(_letters(entry, set(text)))).fname


def _letters(entry: FontEntry, wanted: set[str]) -> set[str]:
    """Those that a font has; none where they are pictures of one size, which cannot be drawn in another."""
    try:
        font = FT2Font(entry.fname)
        font.set_size(10, 72)
    except (OSError, RuntimeError):  # the list is older than the folder; FreeType's word for what it cannot use
        return set()
    return {letter for letter in wanted if font.get_char_index(ord(letter))}


@cache
def _warn(letters: str) -> None:
    _log.warning(
        "no font of this machine has %s, drawn as empty boxes in figures: install for example Noto Sans CJK or Noto "
        "Emoji",
        letters,
    )
