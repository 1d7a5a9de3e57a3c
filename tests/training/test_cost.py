"""Laws of what is said beforehand: what is left to do, the time and the disk that it takes."""

import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tqdm import tqdm

from ghm import params, runs, training
from ghm.errors import InputError
from ghm.evaluation.run import evaluate
from ghm.side_by_side import AT_ONCE
from ghm.training import cost, run
from ghm.training.processes import Processes
from tests.trained import RUN, VARIANT


def rest(parameters: params.Params, variant: str, seed: int = 0) -> cost.Rest:
    """What is to be done after a run of the workspace."""
    return run._rest(run._described(parameters, variant, seed, Processes()))


def test_a_run_counts_as_finished_under_its_own_fingerprint_and_as_evaluated_after_that(place: Path):
    parameters = params.load()
    other = next(name for name in parameters.variants if name != VARIANT)
    assert rest(parameters, other) == cost.Rest("2 of 4", trainings=2, evaluations=4, variants=4, images=12 + 8)
    evaluate(parameters, VARIANT, RUN.parent, Path("detections") / VARIANT)
    assert rest(parameters, other) == cost.Rest("2 of 4", trainings=2, evaluations=3, variants=4, images=12 + 8)
    assert rest(replace(parameters, seeds=(0, 1)), other, 1) == cost.Rest("2 of 8", 6, 7, 4, 12 + 8)
    changed = replace(parameters, train=replace(parameters.train, lr=0.1))
    assert rest(changed, other) == cost.Rest("1 of 4", trainings=3, evaluations=4, variants=4, images=12 + 8)


def test_a_run_in_the_state_folder_counts_though_dvc_has_deleted_its_out(place: Path):
    described = run._described(params.load(), VARIANT, 0, Processes())
    described.folder.mkdir(parents=True)
    shutil.move(RUN, described.folder / runs.RESULT)
    assert rest(params.load(), "fl_sl1").place == "2 of 4"


def test_what_a_run_writes_is_what_was_said_of_its_disk(workspace: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "ghm")
    parameters = replace(params.load(), variants={VARIANT: params.load().variants[VARIANT]})
    training.train(parameters, VARIANT, RUN.parent)
    [(number, unit)] = re.findall(r"1 of 1.* at most ([0-9.]+)([kMG])B of disk", caplog.text)
    said = float(number) * {"k": 1e3, "M": 1e6, "G": 1e9}[unit]
    written = sum(
        path.stat().st_size for name in (".state", "runs") for path in Path(name).rglob("*") if path.is_file()
    )
    assert written <= said <= 1.5 * written


def test_a_run_that_has_no_room_does_not_begin(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10**6))
    with pytest.raises(InputError, match=r"a training run needs .*B more in .*, where 1\.00MB are free: make room"):
        training.train(params.load(), VARIANT, RUN.parent)


def test_the_last_thing_to_do_is_the_evaluation_of_the_run_and_the_report():
    last = cost.Rest("4 of 4", trainings=0, evaluations=1, variants=4, images=100)
    assert str(last) == "1 evaluation and the report"
    more = replace(last, trainings=1, evaluations=2)
    assert str(more) == "1 more training run, 2 evaluations and the report"
    assert more.seconds(600, 0.1) - last.seconds(600, 0.1) > 600


def test_what_is_trained_beside_a_run_ends_with_it_and_the_rest_is_shared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cost, "STARTUP", 0.0)
    rest = cost.Rest("1 of 4", trainings=3, evaluations=4, variants=4, images=100)
    alone = rest.seconds(600, 0.1)
    monkeypatch.setenv(AT_ONCE, "2")
    assert rest.seconds(600, 0.1) == (alone - 600) / 2
    monkeypatch.setenv(AT_ONCE, "8")
    assert rest.seconds(600, 0.1) < 10


def test_the_memory_is_that_of_this_process():
    held = bytearray(300 * 2**20)
    number, unit = re.fullmatch(r"([0-9.]+)([MG])B", cost.memory()).groups()  # type: ignore[union-attr]
    megabytes = float(number) * {"M": 1, "G": 1024}[unit]
    assert len(held) / 2**20 < megabytes < 10 * 1024
    assert tqdm.format_sizeof(len(held), "B", 1024) == "300MB"
