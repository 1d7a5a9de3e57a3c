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
from ghm.params import Loss, Params
from ghm.report import comparison, names
from ghm.report.tables import BASELINE, LEVEL, difference, options, signed

README = Path("README.md")
INTERVALS = "reports/plots/intervals.csv"
METRICS = ("AP", "AP50", "AP75", "AR100")
# Type -> name. Another loss is called by its type.
LOSSES = {
    "ghm.FocalLoss": "Focal Loss",
    "ghm.GHMC": "GHM-C",
    "ghm.SmoothL1Loss": "Smooth L1",
    "ghm.GHMR": "GHM-R",
}
TABLE = re.compile(r"(<!-- table\b[^\n]*-->\n).*?(<!-- end of table -->)", re.DOTALL)


def table(parameters: Params, text_of: Callable[[str], str]) -> str:
    """A row for each variant, in Markdown.

    Args:
        text_of: path in the repository -> content.

    Raises:
        InputError: the report does not have all variants, or is not of these metrics.
    """
    compared = pd.read_csv(io.StringIO(text_of(INTERVALS)), dtype={"variant": str, "metric": str})
    first = next(iter(parameters.variants))
    head = ["variant", *METRICS, f"AP minus {names.code(first)}, {LEVEL}", "losses"]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 2)}---|"]
    for name in parameters.variants:
        metrics = json.loads(text_of(f"metrics/{name}.json"))
        estimates = compared.query("variant == @name and metric == 'AP'")["estimate"].tolist()
        if len(estimates) != 1 or abs(estimates[0] - metrics["AP"]) > 1e-4:
            raise InputError(f"{INTERVALS} is not of metrics/{name}.json: run `dvc repro`")
        minus = BASELINE if name == first else signed(difference(comparison.row(compared, name, "AP")))
        losses = " + ".join(_name(parameters.loss(name, role)) for role in ("cls", "box"))
        cells = [names.code(name), *(f"{100 * metrics[key]:.1f}" for key in METRICS), minus, losses]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _name(loss: Loss) -> str:
    on = ", ".join(f"{key} {value:g}" if isinstance(value, float) else key for key, value in options(loss).items())
    return (LOSSES.get(loss.type) or names.code(loss.type)) + f" with {on}" * bool(on)


def written(readme: str, content: str) -> str:
    """README with `content` between its markers.

    Raises:
        InputError: it has no markers.
    """
    if not TABLE.search(readme):
        raise InputError(f"{README} has no lines <!-- table ... --> and <!-- end of table --> to write between")
    return TABLE.sub(lambda found: f"{found[1]}\n{content}\n\n{found[2]}", readme, count=1)


def _text(name: str) -> str:
    if not Path(name).is_file():
        raise InputError(f"{name} is missing: run `dvc repro`")
    return Path(name).read_text(encoding="utf-8")


def main() -> None:
    content = table(params.load(), _text)
    files.write_text(README, written(_text(str(README)), content))
    print(content)


if __name__ == "__main__":
    run(main)
