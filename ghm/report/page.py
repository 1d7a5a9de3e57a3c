"""The report: gathers tables and figures and writes them all or not at all."""

import shutil
import tempfile
from pathlib import Path

import pandas as pd

from ghm.params import Params
from ghm.report import comparison, html, metric_figures, pictures, tables, training_figures, words
from ghm.report.inputs import Results, read
from ghm.report.style import DPI, Plot, look

REPORTS = Path("reports")
LONG = 20  # rows from which a table is folded away
TITLE = "Does harmonising the gradients train a better detector than Focal Loss?"


def write(params: Params, root: Path, out: Path = REPORTS) -> None:
    """Write `ap_table.md`, `index.html`, `figures/` and `plots/*.csv` into the folder `out` below `root`.

    Raises:
        InputError: a file of a variant is missing, or the runs cannot be compared.
    """
    results = read(params, root)
    compared = comparison.table(results, params)
    curve = comparison.precision_recall(results, params)
    main_table = tables.main(results, params, compared)
    written = [*params.variants, *params.losses, *results.manifest["classes"]]
    with look(written), tempfile.TemporaryDirectory(dir=root, prefix=".report-") as folder:
        new = Path(folder)
        plots = _plots(results, params, compared, curve, root)
        (new / "figures").mkdir()
        for name, plot in plots.items():
            # Without matplotlib's version in the file, equal pictures are equal bytes.
            metadata = {"Software": None} if plot.format == "png" else None
            plot.figure.savefig(new / "figures" / f"{name}.{plot.format}", dpi=DPI, metadata=metadata)
        (new / "plots").mkdir()
        for name, table in _plot_data(results, compared, curve).items():
            table.to_csv(new / "plots" / f"{name}.csv", index=False, float_format="%.6g")
        page = _page(results, params, compared, main_table, plots)
        (new / "ap_table.md").write_text(page, encoding="utf-8")
        (new / "index.html").write_text(html.page(page, new, TITLE), encoding="utf-8")
        _replace(new, root / out)


def _plots(
    results: Results, params: Params, compared: pd.DataFrame, curve: pd.DataFrame, root: Path
) -> dict[str, Plot]:
    """Return every figure that there is something to draw for, by name."""
    several = len(params.variants) > 1
    plots = {
        "differences": metric_figures.differences(compared, params) if several else None,
        "gradient_norms": training_figures.gradient_norms(results, params),
        "region_weights": training_figures.region_weights(results, params),
        "reformulated_gradient": training_figures.reformulated(results, params),
        "density": training_figures.density(results, params),
        "precision_recall": metric_figures.precision_recall(curve, params),
        "errors": metric_figures.errors(results, params),
        "per_class": metric_figures.per_class(compared, results, params) if several else None,
        "disagreements": pictures.disagreements(results, params, root),
        "gallery": pictures.gallery(results, params, root),
        "loss": training_figures.loss(results, params),
        "validation_ap": metric_figures.validation_ap(results, params),
    }
    return {name: plot for name, plot in plots.items() if plot}


def _replace(new: Path, reports: Path) -> None:
    reports.mkdir(parents=True, exist_ok=True)
    for name in ("figures", "plots"):
        shutil.rmtree(reports / name, ignore_errors=True)
    for path in new.iterdir():
        path.replace(reports / path.name)


def _plot_data(results: Results, compared: pd.DataFrame, curve: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the tidy tables behind the figures, for `dvc plots show`."""
    ious: list[float] = curve["iou"].unique().tolist()
    return {
        "loss": results.loss.filter(["variant", "seed", "step", "loss", "loss_cls", "loss_bbox"]),
        "validation_ap": results.validation,
        "intervals": compared,
        **{f"precision_recall_{100 * iou:.0f}": curve.query("iou == @iou").drop(columns="iou") for iou in ious},
        "gradient_norms": results.gradient_norms.drop(columns="count"),
    }


def _page(results: Results, params: Params, compared: pd.DataFrame, main_table: str, plots: dict[str, Plot]) -> str:
    per_class = tables.per_class(results, params)
    count = len(results.manifest["classes"])
    if count > LONG:
        per_class = f"<details><summary>{count} classes</summary>\n\n{per_class}\n\n</details>"

    def shown(*names: str) -> list[str]:
        present = {name: plots[name] for name in names if name in plots}
        return [f"![{plot.alt}](figures/{name}.{plot.format})\n\n{plot.caption}" for name, plot in present.items()]

    blocks = [
        f"# {TITLE}",
        words.answer(params, compared),
        "## What was run",
        words.setting(results, params),
        "## Result",
        main_table,
        words.reading(params),
        "## How sure",
        *shown("differences"),
        "## What the losses did to the gradients",
        *shown("gradient_norms", "region_weights", "reformulated_gradient", "density"),
        "## What that did to the detections",
        *shown("precision_recall", "errors"),
        "### AP of each class",
        per_class,
        *shown("per_class"),
        "### On the images",
        *shown("disagreements", "gallery"),
        "## Training",
        tables.training(results, params),
        *shown("loss", "validation_ap"),
        "## Published figures, not comparable in level",
        "COCO minival, RetinaNet with ResNet-50 FPN, 12 epochs: the repository "
        "[libuyu/GHM_Detection](https://github.com/libuyu/GHM_Detection). Other images and another model; only the "
        "differences can be held against those above.",
        tables.published(params),
        "The table of the paper itself has 36.4 for GHM-C with GHM-R.",
        "## Do it again",
        "`make repro` makes this report from a fresh clone; [docs/experiments.md](../docs/experiments.md) says how to "
        "change a parameter and compare.",
    ]
    return "\n\n".join(blocks) + "\n"
