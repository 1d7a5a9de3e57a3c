"""Stage `publish`: `reports/built/` -> `reports/ap_table.md`, figures, plot data, where git keeps them."""

from pathlib import Path

from ghm import report
from stages import run


def main() -> None:
    report.publish(Path("reports/built"))


if __name__ == "__main__":
    run(main)
