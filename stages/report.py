"""Stage `report`: detections and logs -> tables, figures, plot data in `reports/built/`."""

from pathlib import Path

from ghm import data, params, report
from stages import run


def main() -> None:
    parameters = params.load()
    data.ensure(parameters)  # the gallery shows images
    report.write(parameters, Path(), Path("reports/built"))


if __name__ == "__main__":
    run(main)
