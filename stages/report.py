"""Stage `report`: detections and logs -> `reports/ap_table.md`, figures, plot data."""

from pathlib import Path

from ghm import data, params, report
from stages import run


def main() -> None:
    given = params.load()
    data.ensure(given)  # the gallery shows images
    report.write(given, Path())


if __name__ == "__main__":
    run(main)
