"""Laws of the lab page, whose tables have the rows that the benchmarks printed, and of the checks for a GPU."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "benchmarks"
README = (ROOT / "README.md").read_text()


def rows(section: str) -> list[list[str]]:
    """The cells of a table of the README, without its head."""
    text = README.split(f"<!-- {section} -->")[1].split(f"<!-- end of {section} -->")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line][2:]


def test_the_losses_are_those_that_were_timed() -> None:
    timed = json.loads((ROOT / "results" / "losses_cpu.json").read_text())["rows"]
    found = {row["loss"]: row for row in timed if row["dtype"] == "float32" and row["logits"] == 12_000_000}
    shown = rows("losses")
    assert {cells[0] for cells in shown} == set(found)
    for name, times, *_, memory in shown:
        expected = [f"{found[name][key]:.3g}" for key in ("p20_ms", "p50_ms", "p80_ms")]
        assert times.split(" / ") == expected
        assert memory == (f"{found[name]['memory']:.2f}" if found[name]["memory"] else "-")


def test_the_options_are_those_that_were_trained() -> None:
    trials = json.loads((ROOT / "results" / "options.json").read_text())["trials"]
    shown = rows("options")
    assert {cells[0].strip("`") for cells in shown} == {trial["trial"] for trial in trials}
    for name, seeds, *_ in shown:
        found = [f"{trial['AP']:.3f}".lstrip("0") for trial in trials if trial["trial"] == name.strip("`")]
        assert seeds.split() == found


def test_the_first_steps_are_those_of_the_momentum_benchmark() -> None:
    trained = json.loads((ROOT / "results" / "momentum.json").read_text())["rows"]
    shown = rows("momentum")
    assert len(shown) == len(trained)
    for cells, row in zip(shown, trained, strict=True):
        assert [float(cell) for cell in (cells[0], cells[1], *cells[3:])] == pytest.approx(
            [row["lr"], row["momentum"], *list(row.values())[3:]], nan_ok=True
        )


def test_the_seeds_are_those_that_were_trained() -> None:
    trained = json.loads((ROOT / "results" / "seeds.json").read_text())["rows"]
    shown = rows("seeds")
    assert {cells[0].strip("`") for cells in shown} == {row["variant"] for row in trained}
    for name, seeds, *means in shown:
        own = [row for row in trained if row["variant"] == name.strip("`")]
        assert [row["seed"] for row in own] == [0, 1, 2]
        assert seeds.split() == [f"{row['AP']:.3f}".lstrip("0") for row in own]
        expected = [sum(row[key] for row in own) / 3 for key in ("AP", "AP50", "AP75")]
        assert [float(mean) for mean in means] == pytest.approx(expected, abs=0.0006)


def test_the_killed_trainings_are_those_that_were_compared() -> None:
    killed = json.loads((ROOT / "results" / "faults.json").read_text())
    shown = rows("faults")
    assert len(shown) == len(killed)
    for (processes, *cells), name in zip(shown, sorted(killed), strict=True):
        found = killed[name]
        assert name == f"processes_{processes}"
        numbers = ("steps", "kills", "while_writing", "went_on_from_a_checkpoint")
        assert cells == [*(str(found[key]) for key in numbers), str(len(found["different"]))]


def test_the_table_of_bccd_is_that_of_its_run() -> None:
    measured = json.loads((ROOT / "results" / "bccd.json").read_text())["rows"]
    shown = rows("bccd")
    assert [cells[0].strip("`") for cells in shown] == [row["variant"] for row in measured]
    for cells, row in zip(shown, measured, strict=True):
        *metrics, minutes = list(row.values())[1:]
        assert cells[1:] == [*(f"{100 * value:.1f}" for value in metrics), f"{minutes:.1f}"]


def test_the_times_at_the_size_of_coco_are_those_that_were_measured() -> None:
    measured = json.loads((ROOT / "results" / "scale.json").read_text())
    expected = {
        "images": f"{measured['images']:,}",
        "boxes": f"{measured['boxes']:,}",
        "annotations": f"{measured['annotations_mb']} MB",
        "`dvc repro data`": f"{measured['stage_seconds']} s",
        "its memory at the most": f"{measured['stage_peak_gb']} GB",
        "`dvc repro data` when nothing has changed": f"{measured['stage_again_seconds']} s",
        "the check of a later stage": f"{measured['check_seconds']} s",
        "`dvc status`": f"{measured['status_seconds']} s",
        "checksums": f"{measured['checksums_gb_per_second']} GB/s",
    }
    assert dict(rows("scale")) == expected


def test_the_intervals_held_the_truth_as_often_as_the_page_says() -> None:
    found = json.loads((ROOT / "results" / "coverage.json").read_text())
    shown = rows("coverage")
    assert [cells[0] for cells in shown] == [row["name"] for row in found["rows"]]
    keys = ("AP held", "difference held", "AP held by plain resampling", "difference held by plain resampling")
    for cells, row in zip(shown, found["rows"], strict=True):
        assert cells[1:] == [*(f"{100 * row[key]:.1f} %" for key in keys), f"{100 * row['AP leans']:+.1f}"]
        assert all(0.93 <= row[key] <= 0.97 for key in keys[:2]), cells[0]
    assert found["experiments"] == 500


def test_the_intervals_at_the_size_of_coco_are_those_that_were_timed() -> None:
    measured = json.loads((ROOT / "results" / "intervals.json").read_text())
    expected = {
        "images": f"{measured['images']:,}",
        "classes": f"{measured['classes']}",
        "detections": f"{measured['detections']:,}",
        "resamples": f"{measured['resamples']:,}",
        "pycocotools judges and matches": f"{measured['judge_seconds']} s",
        "all resamples": f"{measured['resample_seconds']} s",
        "memory at the most": f"{measured['peak_gb']} GB",
    }
    assert dict(rows("intervals")) == expected


def test_every_file_that_the_page_names_is_there() -> None:
    assert [name for name in re.findall(r"\]\(([\w./]+)\)", README) if not (ROOT / name).exists()] == []


# Takes the place of Python in `gpu_checks.sh`: each part writes its table, and then passes, fails or hangs.
STAND_IN = """#!/bin/sh
case "$*" in
  *torch.cuda.init*) [ -n "$GPU" ] && echo "Some GPU" || { echo "RuntimeError: Found no NVIDIA driver"; exit 1; } ;;
  *benchmarks.gpu_checks*) echo "a check fails" >&2; echo "| checks so far |" > "$OUT/gpu_checks.md"; exit $FAILS ;;
  *benchmarks.step*) echo "| steps so far |" > "$OUT/step.md"; [ $FAILS = 0 ] || sleep 30 ;;
  *benchmarks.losses*) echo "| losses |" > "$OUT/losses_${GPU:-cpu}.md" ;;
  *benchmarks.speed*) echo "| settings |" > "$OUT/training_speed.md" ;;
  *benchmarks.faults*) echo '{"different": []}' ;;
esac
"""


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
    assert done.stdout.splitlines()[:-1] == [
        "GPU: Some GPU",
        "",
        "== checks (80 s at most)",
        "a check fails",
        "FAILED: exit code 1",
        "| checks so far |",
        "",
        "== step at COCO's size (80 s at most)",
        "FAILED: out of time",
        "| steps so far |",
        "",
        "== losses (80 s at most)",
        "| losses |",
        "",
        "== training speed (100 s at most)",
        "| settings |",
        "",
        "== killed trainings (100 s at most)",
        '{"different": []}',
        "",
    ]
    assert done.stdout.splitlines()[-1].startswith("not passed: checks, step at COCO's size; results are in ")
    assert done.returncode == 1
    limits = [int(seconds) for seconds in re.findall(r"\((\d+) s at most\)", done.stdout)]
    assert sum(limits) + 10 * len(limits) < 8 * 60 + 30


def test_the_gpu_checks_pass_where_all_parts_do_and_not_without_a_gpu(tmp_path: Path) -> None:
    done = checked(tmp_path, GPU="cuda", FAILS="0")
    assert (done.returncode, done.stdout.splitlines()[-1][:11]) == (0, "all passed;")
    done = checked(tmp_path, GPU="", FAILS="0")
    assert done.returncode == 1
    assert done.stdout.startswith("no GPU: RuntimeError: Found no NVIDIA driver\n")
    assert done.stdout.splitlines()[-1].startswith("not passed: no GPU; results are in ")


NEEDED = """
import sys
from importlib.metadata import packages_distributions
import benchmarks.gpu_checks, benchmarks.speed, ghm.detect.detector, stages.backbone, stages.data, stages.train
names = packages_distributions()
print(*sorted({each for module in sys.modules for each in names.get(module.partition(".")[0], [])}))
"""
# What the script says a machine must have, and what these bring along.
THERE = {
    *("torch", "torchvision", "triton", "opencv-python", "scikit-learn", "pandas", "matplotlib", "tabulate"),
    *("requests", "certifi", "charset-normalizer", "cycler", "idna", "joblib", "kiwisolver", "mpmath", "numpy"),
    *("packaging", "pillow", "pyparsing", "python-dateutil", "pytz", "PyYAML", "scipy", "setuptools", "sympy"),
    *("threadpoolctl", "typing_extensions", "urllib3"),
}
OPTIONAL = {"cloudpickle", "colorama", "psutil", "pydot"}  # tried and done without


def test_the_wheels_for_a_bare_machine_are_all_that_a_training_imports() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NEEDED], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    lines = (ROOT / "gpu_wheels.txt").read_text().splitlines()
    carried = {line.split("==")[0] for line in lines if not line.startswith("#")}
    assert set(done.stdout.split()) - THERE - OPTIONAL <= carried
    pinned = (ROOT.parent / "requirements.txt").read_text() + (ROOT.parent / "constraints.txt").read_text()
    assert [line for line in lines if "==" in line and line not in pinned] == []
