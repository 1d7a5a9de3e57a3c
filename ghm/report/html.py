"""The report as one HTML page that needs no other file and no network: made from the Markdown."""

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt

TEMPLATE = Path(__file__).with_name("template.html")
TYPES = {".png": "image/png", ".jpg": "image/jpeg"}


def page(markdown: str, folder: Path, title: str) -> str:
    """Turn the report into a page with sortable tables and figures that can be enlarged.

    Args:
        markdown: the report; its figures are paths below `folder`.
    """
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    body = re.sub(r'<img src="([^"]+)"', lambda found: f'<img src="{_data(folder / found[1])}"', body)
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    # Links into the repository lead nowhere from a page that stands alone.
    body = re.sub(r'<a href="\.\./[^"]*">(.*?)</a>', r"\1", body)
    return TEMPLATE.read_text(encoding="utf-8").replace("{{title}}", html.escape(title)).replace("{{body}}", body)


def _data(path: Path) -> str:
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
