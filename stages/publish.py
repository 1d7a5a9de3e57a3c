"""Stage `publish`: `reports/built/` -> `reports/ap_table.md`, figures, plot data, where git keeps them.

A stage of its own: DVC keeps no stage in its run cache whose outs are in git, unless they are metrics or plots, and
deletes the outs of a stage before it runs.
"""

import shutil
from pathlib import Path

from stages import run


def main() -> None:
    reports = Path("reports")
    for name in ("figures", "plots"):
        shutil.rmtree(reports / name, ignore_errors=True)
    # Not their modes: what DVC has in its cache may be read-only.
    shutil.copytree(reports / "built", reports, dirs_exist_ok=True, copy_function=shutil.copyfile)


if __name__ == "__main__":
    run(main)
