"""Laws of the README: its table is that of the results, and what it names exists."""

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from ghm import files, params, readme
from ghm.errors import InputError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BOUNDS = ("difference", "difference_low", "difference_high")


def committed(path: str) -> str:
    """A file as it was committed: a run with other parameters changes the metrics, and not yet the README."""
    return subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_table_is_what_its_command_writes_from_the_committed_results(tmp_path: Path):
    (tmp_path / "params.yaml").write_text(committed("params.yaml"))
    table = readme.table(params.load(tmp_path / "params.yaml"), committed)
    assert readme.written(committed("README.md"), table) == committed("README.md")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the table is made of, and numbers of its own."""
    for name in ("README.md", "params.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    rows = []
    for place, variant in enumerate(params.load(ROOT / "params.yaml").variants):
        ap = 0.5 + place / 100
        metrics = {"AP": ap, "AP50": ap + 0.1, "AP75": ap + 0.2, "AR100": ap + 0.3}
        files.write_json(tmp_path / "metrics" / f"{variant}.json", metrics)
        difference = dict(zip(BOUNDS, (place / 100, -0.001, 0.1) if place else (None,) * 3, strict=True))
        rows.append({"variant": variant, "metric": "AP", "estimate": ap, **difference})
    files.write_text(tmp_path / readme.INTERVALS, pd.DataFrame(rows).to_csv(index=False))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_the_table_and_nothing_else(results: Path):
    before = (results / "README.md").read_text()
    readme.main()
    after = (results / "README.md").read_text()
    outside = [readme.TABLE.sub("", text) for text in (before, after)]
    assert outside[0] == outside[1]
    assert "| `fl_sl1` | 50.0 | 60.0 | 70.0 | 80.0 | baseline | Focal Loss + Smooth L1 |" in after
    assert "| `ghmc_sl1` | 51.0 | 61.0 | 71.0 | 81.0 | +1.0 [-0.1, +10.0] | GHM-C + Smooth L1 |" in after
    readme.main()
    assert (results / "README.md").read_text() == after


def test_a_report_of_other_metrics_and_a_missing_file_are_refused(results: Path):
    before = (results / "README.md").read_text()
    files.write_json(results / "metrics/ghmc_sl1.json", dict.fromkeys(readme.METRICS, 0.9))
    with pytest.raises(InputError, match=r"intervals\.csv is not of metrics/ghmc_sl1\.json: run `dvc repro`"):
        readme.main()
    (results / "metrics/ghmc_sl1.json").unlink()
    with pytest.raises(InputError, match=r"metrics/ghmc_sl1\.json is missing: run `dvc repro`"):
        readme.main()
    assert (results / "README.md").read_text() == before


def test_every_file_that_the_readme_names_is_there():
    named = set(re.findall(r"\]\(([\w./-]+)\)", README)) | set(re.findall(r"^    (ghm/[\w./]+)", README, re.MULTILINE))
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_every_target_that_the_readme_names_is_in_the_makefile():
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z]+)", README, re.MULTILINE)) <= targets
