"""The report as Markdown and as one HTML page: gathers tables and figures and writes them all or not at all."""

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt

from ghm import files
from ghm.errors import InputError
from ghm.evaluation.matches import CURVE_IOUS
from ghm.params import Params
from ghm.report import comparison, confusion, metric_figures, pictures, tables, training_figures, words
from ghm.report.comparison import Compared
from ghm.report.inputs import Results, read
from ghm.report.style import Plot, look

REPORTS = Path("reports")
LONG = 20  # rows from which a table is folded away
TITLE = "Does harmonising the gradients train a better detector than Focal Loss?"
PUBLISHED = (
    "Of RetinaNet with ResNet-50 FPN on COCO minival, after 12 epochs, the authors report 35.6 AP with Focal Loss, "
    "35.8 with GHM-C and 37.0 with GHM-C and GHM-R in [libuyu/GHM_Detection](https://github.com/libuyu/GHM_Detection), "
    "36.4 in the [paper](https://arxiv.org/abs/1811.05181). Other images and another model: only the "
    "differences can be held against those above."
)
DATA = "What was trained on, as it was seen before: [the data](data.md)."
AGAIN = (
    "`make repro` makes this report from a fresh clone; [docs/experiments.md](../docs/experiments.md) says how to "
    "change a parameter and compare."
)
TEMPLATE = Path(__file__).with_name("template.html")
TYPES = {".png": "image/png", ".jpg": "image/jpeg"}


def write(params: Params, root: Path, out: Path = REPORTS / "built") -> None:
    """Write `ap_table.md`, `index.html`, `figures/` and `plots/*.csv` into the folder `out` below `root`.

    Raises:
        InputError: a file of a variant is missing, or the runs cannot be compared.
    """
    try:
        _write(read(params, root), params, root, out)
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing: run `dvc repro` to make it") from None


def _write(results: Results, params: Params, root: Path, out: Path) -> None:
    compared, curve = comparison.compare(results), comparison.precision_recall(results)
    written = [*params.variants, *params.losses, *results.manifest["classes"]]
    with look(written), files.whole_folder(root / out) as new:
        plots = {
            "differences": metric_figures.differences(compared, params),
            "gradient_norms": training_figures.gradient_norms(results, params),
            "reformulated_gradient": training_figures.reformulated(results, params),
            "density": training_figures.density(results, params),
            "precision_recall": metric_figures.precision_recall(curve, params),
            "confusion": confusion.figure(results, params),
            "gallery": pictures.gallery(results, params),
            "loss": training_figures.loss(results, params),
            "validation_ap": metric_figures.validation_ap(results, params),
        }
        plots = {name: plot for name, plot in plots.items() if plot}
        (new / "figures").mkdir()
        for name, plot in plots.items():
            plot.save(new / "figures", name)
        (new / "plots").mkdir()
        of_iou = {iou: curve[curve["iou"] == iou].drop(columns="iou") for iou in CURVE_IOUS}
        data = {
            "loss": results.loss.filter(["variant", "seed", "step", "loss", "loss_cls", "loss_bbox"]),
            "validation_ap": results.validation,
            "intervals": comparison.table(compared),
            **{f"precision_recall_{100 * iou:.0f}": rows for iou, rows in of_iou.items()},
            "confusion": confusion.table(results),
            "gradient_norms": results.gradient_norms.drop(columns="count"),
        }
        for name, table in data.items():  # for `dvc plots show`
            table.to_csv(new / "plots" / f"{name}.csv", index=False, float_format="%.6g")
        page = _page(results, params, compared, plots)
        (new / "ap_table.md").write_text(page, encoding="utf-8")
        # What the stage `inspect` wrote, one level of headings lower.
        inspected = re.sub("^#", "##", (root / REPORTS / "data.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
        whole = _html(f'{page}\n<a id="data"></a>\n\n{inspected}', [new, root / REPORTS])
        (new / "index.html").write_text(whole, encoding="utf-8")


def _page(results: Results, params: Params, compared: Compared, plots: dict[str, Plot]) -> str:
    count = len(results.manifest["classes"])

    def folded(table: str) -> str:
        return f"<details><summary>{count} classes</summary>\n\n{table}\n\n</details>" if count > LONG else table

    def shown(*names: str) -> list[str]:
        return [plots[name].markdown(f"figures/{name}") for name in names if name in plots]

    blocks = [
        f"# {TITLE}",
        words.answer(params, compared),
        "## What was run",
        words.setting(results, params),
        DATA,
        "## Result",
        tables.main(results, params, compared),
        words.reading(params),
        "## How sure",
        *shown("differences"),
        "## What the losses did to the gradients",
        *shown("gradient_norms", "reformulated_gradient", "density"),
        "## What that did to the detections",
        *shown("precision_recall"),
        "### AP of each class",
        folded(tables.per_class(results, params)),
        "### AP by the number of boxes in an image",
        tables.density(results, params),
        "### Found, missed and confused",
        words.operating(results, params),
        tables.operating(results, params),
        *shown("confusion"),
        "### Precision / recall / F1 of each class",
        folded(tables.operating_per_class(results, params)),
        "### On the images",
        *shown("gallery"),
        "## Training",
        tables.training(results, params),
        *shown("loss", "validation_ap"),
        "## Published figures, not comparable in level",
        PUBLISHED,
        "## Do it again",
        AGAIN,
    ]
    return "\n\n".join(blocks) + "\n"


def _html(markdown: str, folders: list[Path]) -> str:
    """Turn the report into a page that needs no other file: with sortable tables, and figures that can be enlarged.

    Args:
        markdown: the report; its figures are paths below one of `folders`.
    """

    def embedded(image: re.Match[str]) -> str:
        path = next(path for folder in folders if (path := folder / image[1]).is_file())
        return f'<img src="data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"'

    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    body = re.sub(r'<img src="([^"]+)"', embedded, body)
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    # Links into the repository lead nowhere from a page that stands alone.
    body = re.sub(r'<a href="\.\./[^"]*">(.*?)</a>', r"\1", body).replace('href="data.md"', 'href="#data"')
    return TEMPLATE.read_text(encoding="utf-8").replace("{{title}}", html.escape(TITLE)).replace("{{body}}", body)
