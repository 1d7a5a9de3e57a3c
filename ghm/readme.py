"""`python -m ghm.readme`: write the table of README.md from that of `reports/ap_table.md`."""

import re
from pathlib import Path

from ghm import files, params
from ghm.cli import run
from ghm.errors import InputError
from ghm.params import Loss, Params
from ghm.report import names
from ghm.report.tables import options
from ghm.words import label

README, REPORT = Path("README.md"), Path("reports/ap_table.md")
COLUMNS = re.compile("AP|AP50|AP75|AR100|AP minus .*|verdict")  # that README shows, beside variant and losses
# Type -> name. Another loss is called by its type.
LOSSES = {"ghm.FocalLoss": "Focal Loss", "ghm.GHMC": "GHM-C", "ghm.SmoothL1Loss": "Smooth L1", "ghm.GHMR": "GHM-R"}
TABLE = re.compile(r"(<!-- table\b[^\n]*-->\n).*?(<!-- end of table -->)", re.DOTALL)


def updated(readme: str, parameters: Params, report: str) -> str:
    """README with a row for each variant between its markers.

    Args:
        report: whose first table has them.

    Raises:
        InputError: the report is of other variants, or README has no markers.
    """
    first = re.search(r"(?:^\|.*\n)+", report, re.MULTILINE)
    lines = first[0].splitlines() if first else ["", ""]
    head, _, *rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    if [row[0] for row in rows] != [names.markdown(name) for name in parameters.variants]:
        raise InputError(f"{REPORT} is not of the variants of params.yaml: run `dvc repro`")
    if not TABLE.search(readme):
        raise InputError(f"{README} has no lines <!-- table ... --> and <!-- end of table --> to write between")
    shown = [number for number, cell in enumerate(head) if COLUMNS.fullmatch(cell)]
    cells = [["variant", *(head[number] for number in shown), "losses"], ["---", *["---:"] * len(shown), "---"]]
    for name, row in zip(parameters.variants, rows, strict=True):
        losses = " + ".join(_name(parameters.loss(name, role)) for role in ("cls", "box"))
        cells.append([names.code(name), *(row[number] for number in shown), losses])
    table = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    return TABLE.sub(lambda match: f"{match[1]}\n{table}\n\n{match[2]}", readme, count=1)


def _name(loss: Loss) -> str:
    on = ", ".join(f"{key} {label(loss.arguments[key])}" for key, is_on in options(loss).items() if is_on)
    return (LOSSES.get(loss.type) or names.code(loss.type)) + f" with {on}" * bool(on)


def main() -> None:
    for path in (README, REPORT):
        if not path.is_file():
            raise InputError(f"{path} is missing: run `dvc repro`, or restore it with git")
    content = updated(README.read_text(encoding="utf-8"), params.load(), REPORT.read_text(encoding="utf-8"))
    files.write_text(README, content)


if __name__ == "__main__":
    run(main)
