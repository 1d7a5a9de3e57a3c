"""Stage `report`: metrics and logs -> `reports/ap_table.md`, figures, plot data; prints the table."""

from pathlib import Path

from ghm import params, report
from stages import run


def main() -> None:
    print(report.write(params.load(), Path()))


if __name__ == "__main__":
    run(main)
