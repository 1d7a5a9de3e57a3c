"""Laws of the README: its table is that of the results."""

import subprocess
from pathlib import Path

import pytest

from ghm import params, readme
from ghm.errors import InputError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
REPORT = """# Title

| variant | AP | AP50 | APs | AR100 | AP, 95 % | AP minus fl_sl1, 95 % | verdict |
|:--------|---:|-----:|----:|------:|---------:|----------------------:|--------:|
| fl_sl1 | 50.0 | 60.0 | 1.0 | 80.0 | [4, 6] | baseline | baseline |
| ghmc_sl1 | 51.0 | 61.0 | 1.0 | 81.0 | [4, 6] | +1.0 [-0.1, +10.0] | worse |
| ghmc_ghmr | 52.0 | 62.0 | 1.0 | 82.0 | [4, 6] | +2.0 [+0.1, +10.0] | better |
| ghmc_smooth | 53.0 | 63.0 | 1.0 | 83.0 | [4, 6] | +3.0 [+0.1, +10.0] | better |

| variant | AP |
|:--------|---:|
"""
STUDY = """# Question?

| data set | FL, AP on test | GHM-C, difference | other, difference |
|:---|---:|---:|---:|
| digits | 60.6 | -5.6 [-6.2, -4.9] **worse** | +0.1 [-1.0, +1.2] not distinguishable |
| chess | 30.1 | missing | +4.0 [+1.0, +7.0] **better** (one seed) |
| better / worse / not distinguishable | – | 0 / 1 / 0 | 1 / 0 / 1 |
"""  # noqa: RUF001


def committed(path: str) -> str:
    """A file as it was committed: a run with other parameters changes the report, and not yet the README."""
    return subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_table_is_what_its_command_writes_from_the_committed_report(tmp_path: Path):
    (tmp_path / "params.yaml").write_text(committed("params.yaml"))
    parameters = params.load(tmp_path / "params.yaml")
    pages = map(committed, ("reports/ap_table.md", "reports/studies/datasets.md"))
    assert readme.updated(committed("README.md"), parameters, *pages) == committed("README.md")


def test_the_table_is_written_and_nothing_else():
    after = readme.updated(README, params.load(ROOT / "params.yaml"), REPORT, STUDY)
    assert readme.SETS.sub("", readme.TABLE.sub("", README)) == readme.SETS.sub("", readme.TABLE.sub("", after))
    assert "| variant | AP | AP50 | AR100 | AP minus fl_sl1, 95 % | verdict | losses |\n| --- | ---: |" in after
    assert "| `ghmc_sl1` | 51.0 | 61.0 | 81.0 | +1.0 [-0.1, +10.0] | worse | GHM-C + Smooth L1 |" in after
    assert "| +3.0 [+0.1, +10.0] | better | GHM-C with smoothing positives + Smooth L1 |" in after


def test_a_verdict_has_its_colour_and_nothing_else_has_one():
    after = readme.updated(README, params.load(ROOT / "params.yaml"), REPORT, STUDY)
    assert "| data set | FL, AP on test | GHM-C, difference | other, difference |\n| --- | ---: |" in after
    assert "| digits | 60.6 | 🔴 -5.6 [-6.2, -4.9] **worse** | ⚪ +0.1 [-1.0, +1.2] not distinguishable |" in after
    assert "| chess | 30.1 | missing | 🟢 +4.0 [+1.0, +7.0] **better** (one seed) |" in after
    assert "| better / worse / not distinguishable | – | 0 / 1 / 0 | 1 / 0 / 1 |" in after  # noqa: RUF001


@pytest.mark.parametrize("report", ["", REPORT.replace("ghmc_sl1", "other")])
def test_a_report_of_other_variants_is_refused(report: str):
    with pytest.raises(InputError, match=r"reports/ap_table\.md is not of the variants of params\.yaml: "):
        readme.updated(README, params.load(ROOT / "params.yaml"), report, STUDY)
