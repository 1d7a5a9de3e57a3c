"""Tables of studies in a page of `docs/`: `<!-- differences of NAME -->`, table, `<!-- end of differences of NAME -->`.

*differences*: a row for each condition, a column for each curve, with AP on the reported split minus that of the first.
*settings*: a row for each loss, with AP of every setting that was tried on the split to choose on. A curve is called by
its loss and what is changed: the factor of its weight after a multiplication sign, or `b = 0.05` after a comma.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from ghm.errors import InputError
from ghm.evaluation.bootstrap import UNCLEAR
from ghm.report.tables import markdown

MARKED = re.compile(r"(<!-- (differences|settings) of (\w+) -->\n).*?(<!-- end of \2 of \3 -->)", re.DOTALL)
COLOURS = {"better": "🟢", "worse": "🔴", UNCLEAR: "⚪"}  # beside the word or the figure, for who skims a table
CHANGE = re.compile(r" (?=\N{MULTIPLICATION SIGN} )|, (?=\S+ = )")
AS_IT_IS = "as it is"


def updated(page: str, folder: Path) -> str:
    """The page with its tables written anew.

    Args:
        folder: of the studies' results.

    Raises:
        InputError: a study has no results.
    """

    def written(match: re.Match[str]) -> str:
        path = folder / f"{match[3]}.json"
        if not path.is_file():
            raise InputError(f"{path} is missing: run `make study NAME={match[3]}`, or restore it with git")
        head, *rows = KINDS[match[2]](json.loads(path.read_text(encoding="utf-8"))["rows"])
        return f"{match[1]}\n{markdown(head, rows)}\n\n{match[4]}"

    return MARKED.sub(written, page)


def differences(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Head and rows."""
    cells = {(row["cell"]["condition"], row["cell"]["curve"]): row for row in rows}
    conditions, curves = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    head = [f"minus {curves[0]}", f"{curves[0]}, AP", *curves[1:]]
    table = [head]
    for condition in conditions:
        reference = cells[condition, curves[0]]["intervals"]["AP"]
        line = [condition, f"{100 * reference['estimate']:.1f}" if reference else "missing"]
        for curve in curves[1:]:
            minus = cells[condition, curve]["differences"]["AP"]
            if minus:
                low, high, estimate = (f"{100 * minus[key]:+.1f}" for key in ("low", "high", "estimate"))
                line.append(f"{COLOURS[minus['verdict']]} {estimate} ({low} to {high})")
            else:
                line.append("missing")
        table.append(line)
    return table


def settings(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Head and rows."""
    tried: dict[str, dict[str, float]] = {}
    for row in rows:
        loss, change = [*CHANGE.split(row["cell"]["curve"], maxsplit=1), AS_IT_IS][:2]
        if row["chosen_on"]:
            tried.setdefault(loss, {})[change] = 100 * mean(row["chosen_on"].values())
    table = [["loss", "best", AS_IT_IS, "others"]]
    for loss, found in tried.items():
        best = max(found, key=lambda change: found[change])
        others = (f"{change}: {ap:.1f}" for change, ap in found.items() if change != AS_IT_IS)
        plain = [f"{found[AS_IT_IS]:.1f}" if AS_IT_IS in found else ""]
        table.append([loss, f"{found[best]:.1f}, {best}", *plain, "; ".join(others)])
    return table


KINDS: dict[str, Callable[[list[dict[str, Any]]], list[list[str]]]] = {
    "differences": differences,
    "settings": settings,
}
