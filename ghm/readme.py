"""`python -m ghm.readme`: write the table of README.md from `metrics/` and `reports/plots/intervals.csv`."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ghm import files, params
from ghm.cli import run
from ghm.errors import InputError
from ghm.params import Params
from ghm.report import comparison, names
from ghm.report.tables import BASELINE, LEVEL, difference, signed

README = "README.md"
INTERVALS = "reports/plots/intervals.csv"
METRICS = ("AP", "AP50", "AP75", "AR100")
LOSSES = {
    "focal": "Focal Loss",
    "ghmc": "GHM-C",
    "ghmc_smooth": "GHM-C with smoothed density",
    "smooth_l1": "Smooth L1",
    "ghmr": "GHM-R",
}
PLACE = re.compile(r"(<!-- table\b[^\n]*-->\n).*?(<!-- end of table -->)", re.DOTALL)


def table(given: Params, text_of: Callable[[str], str]) -> str:
    """A row for each variant, in Markdown.

    Args:
        text_of: path in the repository -> content.

    Raises:
        InputError: the report does not have all variants, or is not of these metrics.
    """
    compared = pd.read_csv(io.StringIO(text_of(INTERVALS)), dtype={"variant": str, "metric": str})
    first = next(iter(given.variants))
    head = ["variant", *METRICS, f"AP minus {names.code(first)}, {LEVEL}", "losses"]
    lines = [head, ["---", *["---:"] * (len(head) - 2), "---"]]
    for name, variant in given.variants.items():
        metrics = json.loads(text_of(f"metrics/{name}.json"))
        estimates = compared.query("variant == @name and metric == 'AP'")["estimate"].tolist()
        if len(estimates) != 1 or abs(estimates[0] - metrics["AP"]) > 1e-4:
            raise InputError(f"{INTERVALS} is not of metrics/{name}.json: run `dvc repro`")
        figures = [f"{100 * metrics[key]:.1f}" for key in METRICS]
        minus = BASELINE if name == first else signed(difference(comparison.row(compared, name, "AP")))
        losses = " + ".join(LOSSES.get(section) or names.code(section) for section in (variant.cls, variant.box))
        lines.append([names.code(name), *figures, minus, losses])
    return "\n".join(f"| {' | '.join(line)} |" if line[0] != "---" else f"|{'|'.join(line)}|" for line in lines)


def written(readme: str, content: str) -> str:
    """README with `content` between its markers.

    Raises:
        InputError: it has no markers.
    """
    if not PLACE.search(readme):
        raise InputError(f"{README} has no lines <!-- table ... --> and <!-- end of table -->: the table has no place")
    return PLACE.sub(lambda found: f"{found[1]}\n{content}\n\n{found[2]}", readme, count=1)


def _text(name: str) -> str:
    if not Path(name).is_file():
        raise InputError(f"{name} is missing: run `dvc repro`")
    return Path(name).read_text(encoding="utf-8")


def main() -> None:
    content = table(params.load(), _text)
    files.write_text(Path(README), written(_text(README), content))
    print(content)


if __name__ == "__main__":
    run(main)
