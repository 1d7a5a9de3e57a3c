"""Laws of the tables: what is in them, that stopping leaves no trace in them, and what a person sees."""

import io
import logging
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghm.runs import COLUMNS, DENSITY, LOG, VALIDATION
from ghm.training import cost, progress
from ghm.training.progress import Progress

VALUES = ("loss", "loss_cls", "loss_bbox", "grad_norm", "positives")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "perf_counter", clock)
    return clock


def _progress(folder: Path, **changes: Any) -> Progress:
    arguments: dict[str, Any] = dict(name="a", epochs=3, steps=5, interval=2, batch_size=4)
    return Progress(folder, **{**arguments, **changes})


def _values(seed: int) -> dict[str, float]:
    return dict(zip(VALUES, np.random.default_rng(seed).lognormal(0, 3, len(VALUES)).tolist(), strict=True))


def _run(log: Progress, first: int, last: int, *, steps: int = 5, seed: int = 0) -> None:
    """The steps from `first` to `last` of a run that measures and records after each epoch."""
    for step in range(first, last + 1):
        epoch = (step - 1) // steps
        log.step(epoch, step, _values(1000 * seed + step), lr=0.01 / step)
        if step % steps == 0:
            log.measured(epoch + 1, ap=1 / (step + 2))
            rows = [{"step": step, "kind": "cls", "low": low / 3, "high": 1.0, "density": 0.1} for low in range(2)]
            log.record(DENSITY, rows)


def _files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*.csv"))}


def test_a_row_holds_the_means_since_the_last_row_and_the_rate_of_its_own_step(tmp_path: Path):
    log = _progress(tmp_path, epochs=1)
    finished = [log.step(0, step, dict.fromkeys(VALUES, float(step)), lr=0.1 * step) for step in range(1, 5)]
    assert finished == [False, True, False, True]
    table = pd.read_csv(tmp_path / LOG)
    assert tuple(table) == COLUMNS[LOG]
    assert table[["step", "epoch"]].to_numpy().tolist() == [[2, 1], [4, 1]]
    assert all(table[name].tolist() == [1.5, 3.5] for name in VALUES)
    assert table["lr"].tolist() == pytest.approx([0.2, 0.4], rel=1e-12)


@given(data=st.data())
@settings(max_examples=60)
def test_stopping_anywhere_leaves_no_trace_in_the_files(data: st.DataObject):
    steps = data.draw(st.integers(1, 7))
    interval = data.draw(st.integers(1, steps))
    epochs = data.draw(st.integers(1, 3))
    stop = data.draw(st.integers(0, epochs * steps))
    lost = data.draw(st.integers(stop, epochs * steps))
    shape = dict(steps=steps, interval=interval, epochs=epochs)
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        whole = _progress(Path(one), **shape)
        _run(whole, 1, epochs * steps, steps=steps)
        before = _progress(Path(other), **shape)
        _run(before, 1, stop, steps=steps)
        file, state = io.BytesIO(), before.state()
        torch.save(state, file)
        _run(before, stop + 1, lost, steps=steps, seed=1)
        after = _progress(Path(other), **shape)
        after.restore(state)
        _run(after, stop + 1, epochs * steps, steps=steps)
        assert _files(Path(other)) == _files(Path(one))
        assert {**after.state(), "seconds": 0} == {**whole.state(), "seconds": 0}
        file.seek(0)
        # A checkpoint can hold it, and later steps do not change it.
        assert torch.load(file, weights_only=True) == state


def test_the_result_has_the_tables_to_the_byte_and_empty_ones_have_their_columns(tmp_path: Path):
    for name in ("run", "empty", "result"):
        (tmp_path / name).mkdir()
    log = _progress(tmp_path / "run")
    log.write(tmp_path / "empty")
    columns = {name: ",".join(COLUMNS[name]) + "\n" for name in (LOG, VALIDATION)}
    assert _files(tmp_path / "empty") == columns
    _run(log, 1, 15)
    log.write(tmp_path / "result")
    assert _files(tmp_path / "result") == _files(tmp_path / "run")
    _progress(tmp_path / "run")
    assert _files(tmp_path / "run") == {}  # those of an older run


def test_seconds_are_those_of_all_starts_without_the_time_between(tmp_path: Path, clock: Clock):
    log = _progress(tmp_path)
    clock.now += 7
    state = log.state()
    clock.now += 50
    again = _progress(tmp_path)
    again.restore(state)
    clock.now += 5
    assert again.seconds == 12


def test_a_line_tells_all_of_a_row(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "ghm.training.progress")
    log = _progress(tmp_path, name="ghmc, seed 0", epochs=2, steps=40, interval=20)
    values = dict(loss=0.6123, loss_cls=0.4012, loss_bbox=0.2111, grad_norm=3.0, positives=80.0)
    for step in range(1, 61):
        clock.now += 0.5
        log.step((step - 1) // 40, step, values, lr=0.0019)
        if step == 40:
            clock.now += 9.5  # a break counts in the pace
            log.measured(1, 0.4123)
    loss = "loss 0.612 (cls 0.401, box 0.211), lr 0.0019"
    assert caplog.messages == [
        f"ghmc, seed 0: epoch 1/2, step 20/40, {loss}, 8.0 images/s, 00:30 left",
        f"ghmc, seed 0: epoch 1/2, step 40/40, {loss}, 8.0 images/s, 00:20 left",
        "ghmc, seed 0: AP so far 41.2 after epoch 1 of 2",
        f"ghmc, seed 0: epoch 2/2, step 20/40, {loss}, 6.1 images/s, 00:13 left",
    ]
    log.measured(2, -1.0)
    assert caplog.messages[-1] == "ghmc, seed 0: no AP after epoch 2: a part of the validation split has no boxes"


def test_the_time_is_told_after_twenty_steps_and_again_only_when_it_has_changed_much(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level(logging.INFO, "ghm.training.progress")
    monkeypatch.setattr(cost, "STARTUP", 5.0)
    rest = cost.Rest("1 of 4", trainings=3, evaluations=4, variants=4, images=200)
    log = _progress(tmp_path, name="a (1 of 4)", epochs=6, steps=100, interval=50, rest=rest, watched=104)
    started, ended = clock.now, {}
    for slowly in (False, True):
        for epoch in range(3 * slowly, 3 + 3 * slowly):
            for step in range(epoch * 100 + 1, epoch * 100 + 101):
                clock.now += 1.2 if slowly else 0.4
                log.step(epoch, step, dict.fromkeys(VALUES, 1.0), lr=0.1)
            clock.now += 5.0
            log.measured(epoch + 1, 0.5)
        ended[slowly] = clock.now - started
    told = [message for message in caplog.messages if "this training takes about" in message]
    minutes = [[60 * int(a) + int(b) for a, b in re.findall(r"(\d\d):(\d\d)", message)] for message in told]
    steady = 2 * ended[False]  # what it would have taken if it had gone on as it began
    assert minutes[0][0] == pytest.approx(steady, rel=0.1)
    assert minutes[0][1] == pytest.approx(4 * steady + 4 * (6.5 + 200 * 0.1 / 2) + 3 * 5 + 15, rel=0.1)
    assert 2 <= len(told) <= 4 and minutes[1][0] > 1.1 * minutes[0][0]
    assert told[0].startswith("a (1 of 4): ") and "with 3 more training runs, 4 evaluations and the report;" in told[0]
    rows = [message for message in caplog.messages if "images/s" in message]
    assert all(re.search(r"\d\d:\d\d left, (\d:)?\d\d:\d\d in all$", row) for row in rows)


def test_a_bar_goes_on_where_the_run_stopped_and_tells_the_last_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stderr", Terminal())
    caplog.set_level(logging.INFO, "ghm.training.progress")
    log = _progress(tmp_path)
    _run(log, 1, 9)
    assert len(caplog.messages) == 1  # the AP: rows are beside the bar
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    again = _progress(tmp_path, name="ghmc_ghmr, seed 0")
    again.restore(log.state())
    assert terminal.getvalue().split("\r")[-1].startswith("ghmc_ghmr, seed 0:  60%|")
    for step in range(10, 16):
        again.step((step - 1) // 5, step, dict.fromkeys(VALUES, 0.25), lr=0.1)
    again.close()
    last = terminal.getvalue().split("\r")[-1]
    assert "100%" in last and "epoch 3/3, loss 0.250 (cls 0.250, box 0.250)" in last
