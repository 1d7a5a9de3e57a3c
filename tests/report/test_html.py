"""Laws of the page that needs no other file."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ghm import report
from tests.report.artificial_runs import fill


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the texts of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.cells[-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("html")
    report.write(fill(root, variants=2, classes=30), root)
    return root / "reports"


@pytest.fixture(scope="module")
def page(reports: Path) -> Elements:
    return Elements((reports / "index.html").read_text(encoding="utf-8"))


def test_the_page_asks_for_no_other_file(reports: Path, page: Elements) -> None:
    sources = [str(attributes["src"]) for tag, attributes in page.found if "src" in attributes]
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert not page.of("link")
    assert not re.search(r"url\(|@import|fetch\(", (reports / "index.html").read_text())
    links = [str(attributes["href"]) for attributes in page.of("a")]
    assert links and all(link.startswith("https://") for link in links)


def test_every_figure_is_in_it_with_alternative_text(reports: Path, page: Elements) -> None:
    images = [image for image in page.of("img") if "src" in image]
    assert len(images) == len(list((reports / "figures").iterdir()))
    assert all(len(image["alt"] or "") > 20 for image in images)


def test_its_tables_have_the_cells_of_the_markdown(reports: Path, page: Elements) -> None:
    lines = [line for line in (reports / "ap_table.md").read_text().splitlines() if line.startswith("|")]
    wanted = [cell.strip() for line in lines if not line.startswith("|:") for cell in line.strip("|").split("|")]
    assert page.cells == wanted


def test_every_table_has_a_head_to_sort_by(page: Elements) -> None:
    assert len(page.of("table")) == len(page.of("thead")) == len(page.of("tbody")) > 3
