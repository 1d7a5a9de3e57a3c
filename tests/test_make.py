"""Laws of the Makefile: `.venv` holds what is pinned and never vanishes, `make repro` ends with one table."""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghm import sections

ROOT = Path(__file__).parents[1]
REPORT = """from pathlib import Path
text = Path("input.md").read_text()
Path("reports").mkdir(exist_ok=True)
Path("reports/ap_table.md").write_text(text)
"""
STAGES = """stages:
  data: {cmd: "true", always_changed: true}
  inspect: {cmd: "true", deps: [params.yaml]}
  backbone: {cmd: "true", deps: [params.yaml]}
  report: {cmd: python report.py, deps: [input.md], outs: [reports/ap_table.md: {cache: false}]}
"""
TABLE = "| variant |  AP |\n|:--------|----:|\n| a       | 1.0 |"


def wheel(folder: Path, version: str) -> Path:
    """A package that says its version."""
    path = folder / f"tiny-{version}-py3-none-any.whl"
    about = f"tiny-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny.py", f"version = {version!r}\n")
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n")
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", f"tiny.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
    return path


class Copy:
    """The Makefile with a requirement file of its own, and a target that says what is installed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copy(ROOT / "environment.sh", root)
        text = (ROOT / "Makefile").read_text()
        (root / "Makefile").write_text(text + "\nsay: environment\n\t@python -c 'import tiny; print(tiny.version)'\n")
        self.pin("1.0")

    def pin(self, version: str) -> None:
        (self.root / "requirements.txt").write_text(f"./{wheel(self.root, version).name}\n")
        (self.root / "constraints.txt").touch()

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        # Without the `make` that may be running these tests.
        clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "PYTHON")}
        command = ["make", "--no-print-directory", *words]
        where = {**clean, "PIP_NO_INDEX": "1", **environment}
        return subprocess.run(command, cwd=self.root, env=where, capture_output=True, text=True, check=False)

    def ok(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def refused(self, *words: str, **environment: str) -> str:
        done = self.run(*words, **environment)
        assert done.returncode != 0, done.stdout
        lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
        assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
        return lines[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """One environment for all tests here: each takes seconds to make."""
    copy = Copy(tmp_path_factory.mktemp("make"))
    assert copy.ok("say", f"PYTHON={sys.executable}").endswith("\n1.0\n")
    return copy


@pytest.fixture
def copy(made: Copy) -> Iterator[Copy]:
    made.pin("1.0")
    made.ok("environment")
    yield made
    if (made.root / "moved").exists():
        (made.root / ".venv").unlink(missing_ok=True)
        (made.root / "moved").rename(made.root / ".venv")


def test_the_content_of_the_requirement_files_counts_and_not_their_time(copy: Copy):
    later = time.time() + 1e6
    os.utime(copy.root / "requirements.txt", (later, later))
    assert copy.ok("say") == "1.0\n"
    copy.pin("2.0")
    os.utime(copy.root / "requirements.txt", (0, 0))
    assert copy.ok("say").endswith("\n2.0\n")
    (copy.root / "constraints.txt").write_text("# otherwise\n")
    assert "pip install" in copy.ok("say")
    assert copy.ok("say") == "2.0\n"


def test_a_link_is_used_when_it_leads_to_what_is_pinned_and_never_written_through(copy: Copy):
    (copy.root / ".venv").rename(copy.root / "moved")
    (copy.root / ".venv").symlink_to("moved")
    assert copy.ok("say") == "1.0\n"
    copy.pin("2.0")
    before = (copy.root / "moved" / ".installed").read_bytes()
    assert ".venv is a link to moved, where other packages are installed" in copy.refused("say")
    assert (copy.root / "moved" / ".installed").read_bytes() == before
    (copy.root / ".venv").unlink()
    (copy.root / ".venv").symlink_to("nowhere")
    assert ".venv is a link to nowhere" in copy.refused("say")
    assert not (copy.root / "nowhere").exists()


def test_another_python_is_refused_with_the_remedy(copy: Copy):
    stamp = copy.root / ".venv" / ".installed"
    own = "Python {}.{}".format(*sys.version_info)
    stamp.write_text(stamp.read_text().replace(own, "Python 3.9"))
    assert copy.refused("say") == f"error: .venv was made with Python 3.9, and its Python is {own} now: remove .venv"
    stamp.unlink()
    words = f"error: .venv has {own}, and false is no Python: remove .venv, or leave PYTHON=false out"
    assert copy.refused("say", "PYTHON=false") == words
    assert copy.refused("say", PYTHON="false") == words


def test_a_python_that_is_none_makes_no_environment(tmp_path: Path):
    assert "Python 3.11 to 3.13 is needed, and false is no Python" in Copy(tmp_path).refused("say", "PYTHON=false")
    assert not (tmp_path / ".venv").exists()


@pytest.fixture
def pipeline(copy: Copy) -> Copy:
    """Small stages in the place of the pipeline, and the packages that run these tests beside what is pinned."""
    packages = next((copy.root / ".venv" / "lib").glob("python*/site-packages"))
    (packages / "outer.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")) + "\n")
    dvc = copy.root / ".venv" / "bin" / "dvc"
    dvc.write_text(f"#!{copy.root}/.venv/bin/python\nfrom dvc.cli import main\nimport sys\nsys.exit(main())\n")
    dvc.chmod(0o755)
    (copy.root / "ghm").symlink_to(ROOT / "ghm")
    shutil.copy(ROOT / "params.yaml", copy.root)
    (copy.root / "dvc.yaml").write_text(STAGES)
    (copy.root / "report.py").write_text(REPORT)
    (copy.root / "input.md").write_text(f"## Result\n\n{TABLE}\n\n## How sure\n\n{TABLE}\n\n## Published\n")
    subprocess.run([dvc, "init", "--no-scm", "--quiet"], cwd=copy.root, check=True)
    return copy


def test_a_preset_takes_a_folder_with_spaces_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    made = Copy(tmp_path)
    (tmp_path / "ghm").symlink_to(ROOT / "ghm")
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "your data").mkdir()
    here = ["-o", "environment", "preset"]  # in the one that runs this test
    assert "+  epochs: 12" in made.ok(*here, "NAME=bccd_r18")
    printed = made.ok(*here, "NAME=own_cpu", "DATA=your data")
    assert "+  name: custom" in printed
    assert sections.read(tmp_path / "params.yaml")["data"]["root"] == f"{tmp_path}/your data"
    assert made.refused(*here, "NAME=own_cpu", "DATA=none").startswith("error: DATA must be an existing folder")


def test_repro_prints_one_table_whether_the_report_ran_or_not(pipeline: Copy):
    for jobs, words in ((2, "Running stage 'report'"), (2, "didn't change, skipping"), (1, "'report' didn't change")):
        printed = pipeline.ok("repro", f"JOBS={jobs}")
        assert words in printed
        assert printed.count(TABLE) == printed.count("| variant") == 1
        assert printed.endswith("Details: reports/ap_table.md\n")
    assert pipeline.refused("repro", "JOBS=two") == "error: JOBS must be a whole number, 1 or more, got 'two'"
    (pipeline.root / "input.md").write_text("otherwise")
    (pipeline.root / "params.yaml").write_text((ROOT / "params.yaml").read_text().replace("bins: 30", "bins: 0"))
    assert pipeline.refused("repro").startswith("error: ghmc.bins must be a whole number, 1 or greater, got 0")
    (pipeline.root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (pipeline.root / "report.py").write_text("raise SystemExit('broken')")
    done = pipeline.run("repro")
    assert done.returncode != 0 and "| variant" not in done.stdout and "Details" not in done.stdout
