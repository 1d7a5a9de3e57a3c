"""Laws of the README: its table is that of the report, and what it names exists."""

import json
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def rows(text: str) -> dict[str, list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {line[0].strip("`"): line[1:] for line in cells}


def committed(path: str) -> str:
    """A file as it was committed: a run with other parameters changes the metrics, and not yet the README."""
    return subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_table_has_the_figures_of_the_metrics():
    table = rows(committed("README.md").split("<!-- table")[1].split("<!-- end of table")[0])
    assert list(table) == ["fl_sl1", "ghmc_sl1", "ghmc_ghmr", "ghmc_smooth"]
    for variant, cells in table.items():
        metrics = json.loads(committed(f"metrics/{variant}.json"))
        expected = [f"{100 * metrics[name]:.1f}" for name in ("AP", "AP50", "AP75", "APs", "APm", "AR100")]
        assert cells[: len(expected)] == expected


def test_every_file_that_the_readme_names_is_there():
    named = set(re.findall(r"\]\(([\w./-]+)\)", README)) | set(re.findall(r"^    (ghm/[\w./]+)", README, re.MULTILINE))
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_every_target_that_the_readme_names_is_in_the_makefile():
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z]+)", README, re.MULTILINE)) <= targets
