"""Fonts of this machine for letters that the standard one lacks, such as Chinese ones and emoji."""

import logging
from collections.abc import Iterable
from functools import cache

from matplotlib.font_manager import FontEntry, fontManager
from matplotlib.ft2font import FT2Font

STANDARD = "DejaVu Sans"  # comes with matplotlib: the same letters on every machine
_log = logging.getLogger(__name__)


def covering(texts: Iterable[str]) -> list[FontEntry]:
    """STANDARD, and after it as few fonts as it takes to have every letter of `texts`, those that have most first.

    Letters that no font of this machine has are warned of, once.
    """
    chosen = [next(entry for entry in fontManager.ttflist if entry.name == STANDARD and _is_upright(entry))]
    wanted = {letter for text in texts for letter in text if letter.isprintable()}
    missing = wanted - _letters(chosen[0], wanted)
    candidates = [(entry, _letters(entry, missing)) for entry in fontManager.ttflist] if missing else []
    while missing:
        best, has = max(candidates, key=lambda pair: (len(missing & pair[1]), _is_upright(pair[0]), pair[0].name))
        if not missing & has:
            _warn("".join(sorted(missing)))
            break
        chosen.append(best)
        missing -= has
    return chosen


def most_of(text: str) -> str:
    """The file of the font that has most letters of a text, STANDARD where that is no matter."""
    return max(covering([text]), key=lambda entry: len(_letters(entry, set(text)))).fname


def _is_upright(entry: FontEntry) -> bool:
    return (entry.style, entry.weight, entry.stretch) == ("normal", 400, "normal")


def _letters(entry: FontEntry, wanted: set[str]) -> set[str]:
    """Those that a font has; none where they are pictures of one size, which cannot be drawn in another."""
    try:
        font = FT2Font(entry.fname)
        font.set_size(10, 72)
    except (OSError, RuntimeError):  # the list is older than the folder; FreeType's word for what it cannot use
        return set()
    return {letter for letter in wanted if font.get_char_index(ord(letter))}


@cache
def _warn(missing: str) -> None:
    shown = " ".join(missing[:10]) + " ..." * (len(missing) > 10)
    _log.warning(
        "no font of this machine has %s, drawn as empty boxes in figures: install a font with such letters, for "
        "example Noto Sans CJK or Noto Emoji",
        shown,
    )
