"""Laws of names: whatever a class or a variant is called, numbers stand in their columns and figures are drawn."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from ghm import report
from ghm.report import names, tables
from ghm.report.style import look, panels
from tests.report.conftest import cells, fill

HOSTILE = [
    "cat|dog", "<i>", "__x__", "a\nb", "$x$ $y$", "`", "``a``", "lower_95", "AP", "", "猫", "🦝", " a ", "*b*", "_c",
    "[d](e)", "1. f", "- g", "# h", "&amp;", "\\|", "~~i~~", "\\", "$", "|", "<!--", "class", "boxes", "---",
]  # fmt: skip


def rendered(markdown: str) -> list[list[str]]:
    """The cells of a table, row by row, as a page shows them."""
    page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)
    assert set(re.findall(r"<(\w+)", page)) <= {"table", "thead", "tbody", "tr", "th", "td"}, page
    texts, width = cells(page), len(re.findall("<th[ >]", page))
    return [texts[start : start + width] for start in range(0, len(texts), width)]


@settings(max_examples=300)
@given(st.lists(st.text(st.characters(codec="utf-8")) | st.sampled_from(HOSTILE), min_size=1, max_size=4))
def test_a_table_shows_each_name_as_it_is_and_each_number_in_its_column(written: list[str]):
    rows = [[name, *(f"{row}.{column}" for column in range(len(written)))] for row, name in enumerate(written)]
    found = rendered(tables.markdown(["name", *written], rows))
    assert found[0] == ["name", *map(names.line, written)]
    assert found[1:] == [[names.line(row[0]), *row[1:]] for row in rows]


@settings(max_examples=300)
@given(st.text(st.characters(codec="utf-8")) | st.sampled_from(HOSTILE))
def test_prose_shows_a_name_as_it_is(name: str):
    for write in (names.markdown, names.code):
        for text in (f"- {write(name)}", f"see {write(name)}."):
            page = MarkdownIt("commonmark", {"html": True}).enable("strikethrough").render(text)
            shown = cells(f"<td>{page}</td>")[0]
            assert shown == (f"see {names.line(name)}." if text.startswith("see") else names.line(name))
            assert set(re.findall(r"<(\w+)", page)) <= {"ul", "li", "p", "code"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_figure_shows_a_name_as_it_is(name: str):
    with look([name]):
        figure, (ax,) = panels([name])
        ax.set_title(names.figure(name))
        figure.canvas.draw()
        text: Any = figure.legends[0].get_texts()[0]
        assert text._preprocess_math(text.get_text()) == ("\u200a" * name.startswith("_") + names.line(name), False)


def test_a_whole_report_is_written_with_hostile_names(tmp_path: Path):
    params = fill(tmp_path, variants=["$x$ $y$", "boxes", "a|*b*"], seeds=2, classes=HOSTILE)
    report.write(params, tmp_path)
    page = (tmp_path / "reports/built/ap_table.md").read_text(encoding="utf-8")
    table = page.split("### AP of each class")[1].split("<details>")[1].split("\n\n")[1]
    found = rendered(table)
    assert found[0] == ["class", "boxes", *params.variants]
    metrics = [json.loads((tmp_path / f"detections/{name}/metrics.json").read_text()) for name in params.variants]
    assert [row[0] for row in found[1:]] == list(map(names.line, HOSTILE))
    for name, row in zip(HOSTILE, found[1:], strict=True):
        expected = [f"{100 * of_variant['classes'][name]:.1f}" for of_variant in metrics]
        assert [cell.split(" ±")[0] for cell in row[2:]] == expected, name
    html = (tmp_path / "reports/built/index.html").read_text(encoding="utf-8")
    assert set(map(names.line, [*HOSTILE, *params.variants])) <= set(cells(html))
    assert not re.search("<(i|del|s)>", html)


def test_letters_that_no_font_has_are_said_once(caplog: pytest.LogCaptureFixture):
    letters = "\U00013000\U00013001"  # hieroglyphs
    with caplog.at_level(logging.WARNING, "ghm"):
        for _ in range(2):
            with look([letters]):
                figure = Figure()
                figure.text(0, 0, letters)
                figure.canvas.draw()
    assert len(caplog.messages) == 1
    assert "no font of this machine has \U00013000 \U00013001" in caplog.messages[0]
