"""The report: gathers tables and figures, words them, and writes them all or not at all."""

import itertools
import shutil
import tempfile
from pathlib import Path

import pandas as pd
from matplotlib import rc_context

from ghm.params import Params
from ghm.report import curves, gradients, tables
from ghm.report.gallery import gallery
from ghm.report.inputs import Results, read
from ghm.report.style import DPI, STYLE, Plot

LONG = 20  # rows from which a table is folded away


def write(params: Params, root: Path) -> str:
    """Write `reports/ap_table.md`, `reports/figures/*.png` and `reports/plots/*.csv` below `root`.

    Returns:
        The main table as text.

    Raises:
        InputError: a file of a variant is missing, or one of the sections focal, ghmc and ghmr.
    """
    results = read(params, root)
    main_table = tables.markdown(tables.main(results, params))
    with rc_context(STYLE), tempfile.TemporaryDirectory(dir=root, prefix=".report-") as folder:
        new = Path(folder)
        plots = {
            "loss": curves.loss(results, params),
            "precision_recall": curves.precision_recall(results, params),
            "gradient_norms": gradients.gradient_norms(results, params),
            "reformulated_gradient": gradients.reformulated(results, params),
            "gallery": gallery(results, params, root),
        }
        (new / "figures").mkdir()
        for name, plot in plots.items():
            # Without matplotlib's version in the file, equal pictures are equal bytes.
            metadata = {"Software": None} if plot.format == "png" else None
            plot.figure.savefig(new / "figures" / f"{name}.{plot.format}", dpi=DPI, metadata=metadata)
        (new / "plots").mkdir()
        for name, table in _plot_data(results).items():
            table.to_csv(new / "plots" / f"{name}.csv", index=False, float_format="%.6g")
        (new / "ap_table.md").write_text(_page(results, params, main_table, plots), encoding="utf-8")
        _replace(new, root / "reports")
    return main_table


def _replace(new: Path, reports: Path) -> None:
    reports.mkdir(exist_ok=True)
    for name in ("figures", "plots"):
        shutil.rmtree(reports / name, ignore_errors=True)
    for path in new.iterdir():
        path.replace(reports / path.name)


def _plot_data(results: Results) -> dict[str, pd.DataFrame]:
    """Return the tidy tables behind the figures, for `dvc plots show`."""
    curves = results.precision_recall.drop(columns="seed").groupby(["variant", "iou", "recall"], sort=False)
    means = curves.mean().reset_index()
    ious: list[float] = means["iou"].unique().tolist()
    return {
        "loss": results.loss.filter(["variant", "seed", "step", "loss", "loss_cls", "loss_bbox"]),
        **{f"precision_recall_{100 * iou:.0f}": means.query("iou == @iou").drop(columns="iou") for iou in ious},
        "gradient_norms": results.gradient_norms.drop(columns="count"),
    }


def _page(results: Results, params: Params, main_table: str, plots: dict[str, Plot]) -> str:
    per_class = tables.markdown(tables.per_class(results, params))
    count = len(results.manifest["classes"])
    if count > LONG:
        per_class = f"<details><summary>{count} classes</summary>\n\n{per_class}\n\n</details>"
    pictures = [f"![{plot.alt}](figures/{name}.{plot.format})\n\n{plot.caption}" for name, plot in plots.items()]
    blocks = [
        "# Does harmonising the gradients train a better detector than Focal Loss?",
        _setting(results, params),
        "## Result",
        main_table,
        _reading(params),
        "## Published figures, not comparable in level",
        "COCO minival, RetinaNet with ResNet-50 FPN, 12 epochs: the repository "
        "[libuyu/GHM_Detection](https://github.com/libuyu/GHM_Detection). Other images and another model; only the "
        "differences can be held against those above.",
        tables.markdown(tables.published(params)),
        "The table of the paper itself has 36.4 for `ghmc_ghmr`.",
        "## AP of each class",
        per_class,
        "## Figures",
        *pictures,
        "## How each variant was trained",
        tables.markdown(tables.training(results, params), texts=4),
        "## Do it again",
        _commands(),
    ]
    return "\n\n".join(blocks) + "\n"


def _setting(results: Results, params: Params) -> str:
    """Say in a few lines what was run."""
    train, model = params.train, params.model
    split = params.evaluate.split
    measured = results.manifest["splits"][split]
    contexts = list(itertools.chain.from_iterable(results.contexts.values()))
    first = contexts[0]
    noise = params.data.label_noise
    wrong = f" **{noise:.0%} of the training boxes have a wrong class.**" if noise > 0 else ""
    backbone = (
        f"all weights from a trained detector ({first['load_from']})"
        if first.get("load_from")
        else f"backbone pretrained ({first['pretrained']})"
        if first["pretrained"]
        else "**no pretrained backbone**, from which GHM-C suffers more than Focal Loss does"
    )
    versions = (", ".join(f"{name} {version}" for name, version in run["versions"].items()) for run in contexts)
    seeds = ", ".join(map(str, params.seeds))
    return "\n".join(
        [
            "Variants of one detector, trained on the same images in the same way: only the losses differ.",
            "",
            f"- **Data**: `{first['dataset']}`, {len(results.manifest['classes'])} classes, {first['images']:,} images "
            f"to train, {measured['images']:,} to measure (`{split}`, {measured['boxes']:,} boxes).{wrong}"
            f"{_warnings(results, split)}",
            f"- **Model**: RetinaNet, {model.backbone} with {model.base_channels} base channels, FPN of "
            f"{model.levels} levels, {first['parameters'] / 1e6:.1f} M parameters, {backbone}.",
            f"- **Training**: {first['epochs']} epochs, {train.batch_size} images a step, {train.optimizer}, learning "
            f"rate {train.learning_rate:g} ({train.schedule}), seed{'s' * (len(params.seeds) > 1)} {seeds}.",
            f"- **Machine**: {tables.distinct(run['device'] for run in contexts)}; {tables.distinct(versions)}; "
            f"revision {tables.distinct(run['revision'] for run in contexts)}.",
        ]
    )


def _warnings(results: Results, split: str) -> str:
    """Say what the check of the data set found in the splits that were used."""
    found = [
        f"{count:,} {kind.replace('_', ' ')} in `{name}`"
        for name in ("train", split)
        for kind, count in results.manifest["splits"][name]["warnings"].items()
    ]
    return f" Found by its check: {', '.join(found)}." if found else ""


def _reading(params: Params) -> str:
    """Say how to read the main table."""
    note = (
        f"COCO metrics in percent on `{params.evaluate.split}`: APs, APm and APl for boxes of up to 32², up to 96² and "
        f"more square pixels ({tables.DASH}: there are none), AR100 the recall with 100 detections an image. "
    )
    if len(params.seeds) == 1:
        return note + (
            "**One seed cannot tell a difference of about 1 AP from noise**: trainings that differ in nothing but the "
            "seed lie about that far apart. `seeds: [0, 1, 2]` in `params.yaml` gives a spread."
        )
    return note + (
        f"Mean ± standard deviation over {len(params.seeds)} seeds; that of a difference is taken seed by seed."
    )


def _commands() -> str:
    return "\n".join(
        [
            "```shell",
            "make repro                      # this report, from a fresh clone",
            "dvc exp run -S ghmc.bins=10     # change a parameter: trains again only what depends on it",
            "dvc metrics diff                # what that did to AP",
            "dvc plots show                  # the curves in a browser, data in plots/",
            "```",
        ]
    )
