"""Stage `report`: metrics and logs -> `reports/ap_table.md`, figures, plot data; prints the table."""

from pathlib import Path

from ghm import data, fingerprint, params, report
from stages import run


def main() -> None:
    given = params.load()
    data.ensure(given)  # the gallery shows images
    print(report.write(given, Path(), fingerprint.data_checksum(data.read_manifest(given))))


if __name__ == "__main__":
    run(main)
