"""Laws of the table of README: it is that of the results."""

import subprocess
from pathlib import Path

import pytest

from ghm import params, readme
from ghm.errors import InputError
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
REPORT = """# Title

| variant | AP | AP50 | APs | AR100 | AP, 95 % | AP minus fl_sl1, 95 % | verdict |
|:--------|---:|-----:|----:|------:|---------:|----------------------:|--------:|
| fl_sl1 | 50.0 | 60.0 | 1.0 | 80.0 | [4, 6] | baseline | baseline |
| ghmc_sl1 | 51.0 | 61.0 | 1.0 | 81.0 | [4, 6] | +1.0 [-0.1, +10.0] | worse |
| ghmc_ghmr | 52.0 | 62.0 | 1.0 | 82.0 | [4, 6] | +2.0 [+0.1, +10.0] | better |
| ghmc_smooth | 53.0 | 63.0 | 1.0 | 83.0 | [4, 6] | +3.0 [+0.1, +10.0] | better |

| variant | AP |
"""


def committed(path: str) -> str:
    """A file as it was committed: a run with other parameters changes the report, and not yet the README."""
    return subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_table_is_what_its_command_writes_from_the_committed_report(tmp_path: Path):
    (tmp_path / "params.yaml").write_text(committed("params.yaml"))
    table = readme.table(params.load(tmp_path / "params.yaml"), committed("reports/ap_table.md"))
    assert readme.written(committed("README.md"), table) == committed("README.md")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the table is made of, and numbers of its own."""
    for name in ("README.md", "params.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "reports").mkdir()
    (tmp_path / readme.REPORT).write_text(REPORT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_the_table_and_nothing_else(results: Path):
    readme.main()
    after = (results / "README.md").read_text()
    assert readme.TABLE.sub("", README) == readme.TABLE.sub("", after)
    assert "| variant | AP | AP50 | AR100 | AP minus fl_sl1, 95 % | losses |\n| --- | ---: |" in after
    assert "| `ghmc_sl1` | 51.0 | 61.0 | 81.0 | +1.0 [-0.1, +10.0] | GHM-C + Smooth L1 |" in after
    assert "| +3.0 [+0.1, +10.0] | GHM-C with smoothing 100 + Smooth L1 |" in after
    readme.main()
    assert (results / "README.md").read_text() == after


@pytest.mark.parametrize("report", ["", REPORT.replace("ghmc_sl1", "other")])
def test_a_report_of_other_variants_and_a_missing_file_are_refused(report: str, results: Path):
    readme.REPORT.write_text(report)
    with pytest.raises(InputError, match=r"reports/ap_table\.md is not of the variants of params\.yaml: "):
        readme.main()
    readme.REPORT.unlink()
    with pytest.raises(InputError, match=r"reports/ap_table\.md is missing: run `dvc repro`"):
        readme.main()
    assert (results / "README.md").read_text() == README
