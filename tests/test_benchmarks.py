"""Laws of the lab page, whose tables have the rows that the benchmarks printed, and of the checks for a GPU."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1] / "benchmarks"
README = (ROOT / "README.md").read_text()


# Table of the page -> file of its results, and the columns that hold what was measured as it is.
TABLES = {
    "momentum": ("momentum", [1, 3, 4, 5]),
    "coverage": ("coverage", [1, 2, 3, 4, 5]),
    "intervals": ("intervals", [1]),
    "faults": ("faults", [1, 2, 3, 4]),
    "bccd": ("bccd", [1, 2, 3, 4, 5, 6, 7]),
    "own_data": ("own_data", [2, 3, 4, 5, 6, 7, 8, 9]),
    "fit": ("fit", [3, 4]),
    "anchors": ("anchors", [1, 2, 3, 4, 5]),
    "import_yolo": ("import_yolo", [1, 2]),
    "scale": ("scale", [1]),
    "losses": ("losses_cpu", [1, 5]),
    "step_cpu": ("step_cpu", [1, 2, 3, 4]),
    "step_parts": ("step_cpu", list(range(2, 10))),
    "step_operators": ("step_cpu", [2, 3, 4, 5]),
    "step": ("step", [0, 3, 4, 5, 6, 7]),
    "kernels": ("kernels", [1, 2, 3, 4, 5, 6]),
    "kernel steps": ("kernels", [0, 1, 2, 3, 4]),
}


def numbers(content: Any) -> list[float]:
    """All numbers of a JSON file."""
    if isinstance(content, dict | list):
        inner = content.values() if isinstance(content, dict) else content
        return [number for item in inner for number in numbers(item)]
    return [abs(content)] if isinstance(content, int | float) else []


@pytest.mark.parametrize("table", TABLES)
def test_every_number_in_a_table_was_measured(table: str) -> None:
    name, columns = TABLES[table]
    measured = numbers(json.loads((ROOT / "results" / f"{name}.json").read_text()))
    text = README.split(f"<!-- {table} -->")[1].split(f"<!-- end of {table} -->")[0]
    rows = [line.strip("|").replace(",", "").split("|") for line in text.splitlines() if "|" in line][2:]
    shown = [number for row in rows for column in columns for number in re.findall(r"[\d.]+(?:e\+\d+)?", row[column])]
    assert len(shown) >= len(rows)
    for number in shown:
        digits = len(number.partition(".")[2])
        values = {round(factor * value, digits) for value in measured for factor in (1, 100)}  # a share, or in percent
        assert float(number) in values | {float(f"{value:.3g}") for value in measured}, number


def test_the_intervals_held_the_truth_as_often_as_they_say() -> None:
    measured = json.loads((ROOT / "results" / "coverage.json").read_text())
    assert measured["experiments"] == 500
    assert all(0.93 <= row[key] <= 0.97 for row in measured["rows"] for key in ("AP held", "difference held"))


# Takes the place of Python in `gpu_checks.sh`: each part writes its files, and then passes, fails or hangs.
STAND_IN = """#!/bin/sh
write() { echo "| $1 |" > "$OUT/$2.md"; echo {} > "$OUT/$2.json"; }
cpu=_cpu; [ -z "$GPU" ] || cpu=
case "$*" in
  *torch.cuda.init*) [ -n "$GPU" ] && echo "Some GPU" || { echo "RuntimeError: Found no NVIDIA driver"; exit 1; } ;;
  *benchmarks.gpu_checks*) echo "a check fails" >&2; write "checks so far" gpu_checks; exit $FAILS ;;
  *benchmarks.step*) write "steps so far" "step$cpu"; [ $FAILS = 0 ] || sleep 30 ;;
  *benchmarks.losses*) write losses "losses_${GPU:-cpu}"; touch "$OUT/losses_${GPU:-cpu}.png" ;;
  *benchmarks.default_ap*) echo "| AP |" > "$OUT/default_ap.md" ;;
esac
"""
TABLES_OF_CHECKS = ["checks so far", "steps so far", "losses", "AP"]


def checked(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run `gpu_checks.sh` with a stand-in for Python, and a second for each part."""
    programs = {"python3": STAND_IN, "timeout": f'#!/bin/sh\nshift 2\nexec {shutil.which("timeout")} 1 "$@"\n'}
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(ROOT / "gpu_checks.sh")],
        env={**os.environ, "PATH": path, "OUT": str(folder / "out"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_gpu_checks_go_on_to_their_end_and_print_what_they_have_whatever_fails(tmp_path: Path) -> None:
    done = checked(tmp_path, GPU="cuda", FAILS="1")
    *parts, last = re.split(r"\n+(?:== )?", done.stdout.strip())
    assert parts[1:9] == [
        *("checks (105 s at most)", "a check fails", "FAILED: exit code 1", "| checks so far |"),
        *("step at COCO's size (150 s at most)", "FAILED: out of time", "| steps so far |", "losses (45 s at most)"),
    ]
    assert last.startswith("not passed: checks, step at COCO's size; results are in ")
    assert done.returncode == 1
    limits = [int(seconds) for seconds in re.findall(r"\((\d+) s at most\)", done.stdout)]
    assert len(limits) == 4 and sum(limits) < 8 * 60


@pytest.mark.parametrize("gpu", ["cuda", ""])
def test_the_gpu_checks_print_every_table_and_pass_only_on_a_gpu(tmp_path: Path, gpu: str) -> None:
    done = checked(tmp_path, GPU=gpu, FAILS="0")
    assert re.findall(r"^\| (.*) \|$", done.stdout, re.MULTILINE) == TABLES_OF_CHECKS
    assert len(list((tmp_path / "out").iterdir())) <= 8  # as many come back from a lent machine
    if gpu:
        assert (done.returncode, done.stdout.splitlines()[-1][:11]) == (0, "all passed;")
    else:
        assert done.returncode == 1 and done.stdout.startswith("no GPU: RuntimeError: Found no NVIDIA driver\n")


NEEDED = """
import sys
from importlib.metadata import packages_distributions
import benchmarks.gpu_checks, benchmarks.default_ap, benchmarks.step
import ghm.detect.detector, stages.backbone, stages.data, stages.train
names = packages_distributions()
print(*sorted({each for module in sys.modules for each in names.get(module.partition(".")[0], [])}))
"""
# What the script says a machine must have, and what these bring along.
THERE = {
    *("torch", "torchvision", "triton", "opencv-python", "scikit-learn", "pandas", "matplotlib", "tabulate"),
    *("requests", "certifi", "charset-normalizer", "cycler", "idna", "joblib", "kiwisolver", "mpmath", "numpy"),
    *("packaging", "pillow", "pyparsing", "python-dateutil", "pytz", "PyYAML", "scipy", "setuptools", "sympy"),
    *("threadpoolctl", "typing_extensions", "urllib3", "fonttools", "narwhals"),
}
OPTIONAL = {"cloudpickle", "colorama", "psutil", "pydot"}  # tried and done without


def test_the_wheels_for_a_bare_machine_are_all_that_a_training_imports() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NEEDED], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    lines = (ROOT / "gpu_wheels.txt").read_text().splitlines()
    carried = {line.split("==")[0] for line in lines if not line.startswith("#")}
    assert set(done.stdout.replace("_core", "-core").split()) - THERE - OPTIONAL <= carried
    pinned = (ROOT.parent / "requirements.txt").read_text() + (ROOT.parent / "constraints.txt").read_text()
    assert [line for line in lines if "==" in line and line not in pinned] == []
