"""Laws of the tables of studies in a page of `docs/`."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ghm.errors import InputError
from ghm.study import excerpts
from tests.study.conftest import ROOT

PAGE = "before\n<!-- differences of one -->\nold\n<!-- end of differences of one -->\nafter\n"
MARKS = re.compile(r"<!-- (?:differences|settings) of \w+ -->")


def row(condition: str, curve: str, val: float | None, minus: tuple[float, float, float, str] | None) -> dict[str, Any]:
    difference = minus and dict(zip(("estimate", "low", "high", "verdict"), minus, strict=True))
    return {
        "cell": {"condition": condition, "curve": curve},
        "chosen_on": {} if val is None else {"0": val, "1": val + 0.02},
        "intervals": {"AP": None if val is None else {"estimate": val + 0.1}},
        "differences": {"AP": difference},
    }


def test_the_tables_of_the_note_are_what_their_command_writes_from_the_committed_studies():
    page = (ROOT / "docs" / "harmonising.md").read_text()
    assert len(MARKS.findall(page)) == len(excerpts.MARKED.findall(page)) > 0, "each mark has its end"
    assert excerpts.updated(page, ROOT / "reports" / "studies") == page


def test_a_table_is_written_between_its_marks_and_nothing_else_changes(tmp_path: Path):
    rows = [
        row("clean", "FL", 0.5, None),
        row("clean", "GHM-C", 0.4, (-0.1, -0.123, -0.05, "worse")),
        row("noisy", "FL", 0.3, None),
        row("noisy", "GHM-C", 0.31, (0.01, -0.02, 0.04, "not distinguishable")),
        row("odd", "FL", None, None),
        row("odd", "GHM-C", 0.2, None),
    ]
    (tmp_path / "one.json").write_text(json.dumps({"rows": rows}))
    assert excerpts.updated(PAGE, tmp_path).splitlines() == [
        "before",
        "<!-- differences of one -->",
        "",
        "| minus FL   |   FL, AP |                    GHM-C |",
        "|:-----------|---------:|-------------------------:|",
        "| clean      |     60.0 | 🔴 -10.0 (-12.3 to -5.0) |",
        "| noisy      |     40.0 |   ⚪ +1.0 (-2.0 to +4.0) |",
        "| odd        |  missing |                  missing |",
        "",
        "<!-- end of differences of one -->",
        "after",
    ]
    with pytest.raises(InputError, match=r"two\.json is missing: run `make study NAME=two`, or restore it with git$"):
        excerpts.updated(PAGE.replace("of one", "of two"), tmp_path)


def test_the_settings_of_a_loss_are_one_row_with_the_best_by_what_is_chosen_on():
    curves = {"SL1": 0.5, "SL1 \N{MULTIPLICATION SIGN} 0.5": 0.52, "SL1, b = 0.1": 0.4, "GIoU": None, "R by P": 0.6}
    rows = [row("clean", curve, val, None) for curve, val in curves.items()]
    best, other = "\N{MULTIPLICATION SIGN} 0.5", "b = 0.1: 41.0"
    assert excerpts.settings(rows)[1:] == [
        ["SL1", f"53.0, {best}", "51.0", f"{best}: 53.0; {other}"],
        ["R by P", "61.0, as it is", "61.0", ""],
    ]
