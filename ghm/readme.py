"""`python -m ghm.readme`: write the tables of README.md and of docs/harmonising.md from `reports/` and its studies."""

import re
from pathlib import Path

from ghm import files, params
from ghm.cli import run
from ghm.errors import InputError
from ghm.evaluation.bootstrap import UNCLEAR
from ghm.params import Loss, Params
from ghm.report import names
from ghm.report.tables import options
from ghm.study import excerpts
from ghm.words import label

README, REPORT, STUDY = Path("README.md"), Path("reports/ap_table.md"), Path("reports/studies/datasets.md")
NOTE = Path("docs/harmonising.md")
COLUMNS = re.compile("AP|AP50|AP75|AR100|AP minus .*|verdict")  # that README shows, beside variant and losses
# Type -> name. Another loss is called by its type.
LOSSES = {"ghm.FocalLoss": "Focal Loss", "ghm.GHMC": "GHM-C", "ghm.SmoothL1Loss": "Smooth L1", "ghm.GHMR": "GHM-R"}
TABLE = re.compile(r"(<!-- table\b[^\n]*-->\n).*?(<!-- end of table -->)", re.DOTALL)
SETS = re.compile(r"(<!-- data sets\b[^\n]*-->\n).*?(<!-- end of data sets -->)", re.DOTALL)


def updated(readme: str, parameters: Params, report: str, study: str) -> str:
    """README with a row for each variant and one for each data set between its markers.

    Args:
        report: whose first table has the variants.
        study: whose first table has the data sets.

    Raises:
        InputError: the report is of other variants, or README has no markers.
    """
    head, *rows = _first_table(report)
    if [row[0] for row in rows] != [names.markdown(name) for name in parameters.variants]:
        raise InputError(f"{REPORT} is not of the variants of params.yaml: run `dvc repro`")
    for name, place in (("table", TABLE), ("data sets", SETS)):
        if not place.search(readme):
            raise InputError(f"{README} has no lines <!-- {name} ... --> and <!-- end of {name} --> to write between")
    shown = [number for number, cell in enumerate(head) if COLUMNS.fullmatch(cell)]
    cells = [["variant", *(head[number] for number in shown), "losses"], ["---", *["---:"] * len(shown), "---"]]
    for name, row in zip(parameters.variants, rows, strict=True):
        losses = " + ".join(_name(parameters.loss(name, role)) for role in ("cls", "box"))
        cells.append([names.code(name), *(row[number] for number in shown), losses])
    sets_head, *sets = _first_table(study)
    coloured = [[row[0], *map(_coloured, row[1:])] for row in sets]
    by_set = [sets_head, ["---", *["---:"] * (len(sets_head) - 1)], *coloured]
    for place, table in ((TABLE, cells), (SETS, by_set)):
        text = "\n".join(f"| {' | '.join(row)} |" for row in table)
        readme = place.sub(lambda match, text=text: f"{match[1]}\n{text}\n\n{match[2]}", readme, count=1)
    return readme


def _first_table(page: str) -> list[list[str]]:
    """The cells of the first table of a page, head and rows; one empty row where there is none."""
    first = re.search(r"(?:^\|.*\n)+", page, re.MULTILINE)
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in first[0].splitlines()] if first else [[], []]
    return [[cell.strip() for cell in row] for number, row in enumerate(rows) if number != 1]


def _coloured(cell: str) -> str:
    """A cell with a verdict, and the colour of that before it."""
    words = {word if word == UNCLEAR else f"**{word}**": colour for word, colour in excerpts.COLOURS.items()}
    found = [colour for word, colour in words.items() if word in cell]
    return f"{found[0]} {cell}" if len(found) == 1 else cell


def _name(loss: Loss) -> str:
    on = ", ".join(f"{key} {label(loss.arguments[key])}" for key, is_on in options(loss).items() if is_on)
    return (LOSSES.get(loss.type) or names.code(loss.type)) + f" with {on}" * bool(on)


def main() -> None:
    for path in (README, REPORT, STUDY, NOTE):
        if not path.is_file():
            raise InputError(f"{path} is missing: run `dvc repro`, or restore it with git")
    readme, report, study = (path.read_text(encoding="utf-8") for path in (README, REPORT, STUDY))
    files.write_text(README, updated(readme, params.load(), report, study))
    files.write_text(NOTE, excerpts.updated(NOTE.read_text(encoding="utf-8"), STUDY.parent))


if __name__ == "__main__":
    run(main)
