"""Laws of the log: what is in it, that stopping leaves no trace in it, and what a person sees."""

import importlib
import io
import logging
import math
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

from ghm.errors import InputError
from ghm.training import progress
from ghm.training.progress import COLUMNS, Progress

VALUES = ("loss", "loss_cls", "loss_bbox", "grad_norm", "positives")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(progress, "perf_counter", clock)
    return clock


def _progress(folder: Path, **changes: Any) -> Progress:
    given: dict[str, Any] = dict(name="a", epochs=3, steps=5, interval=2, batch_size=4, stream=io.StringIO())
    return Progress(folder, **{**given, **changes})


def _values(seed: int) -> dict[str, float]:
    return dict(zip(VALUES, np.random.default_rng(seed).lognormal(0, 3, len(VALUES)).tolist(), strict=True))


def _run(log: Progress, first: int, last: int, *, steps: int, seed: int = 0) -> None:
    """The steps from `first` to `last` of a training that measures and records after each epoch."""
    for step in range(first, last + 1):
        epoch = (step - 1) // steps
        log.step(epoch, step, _values(1000 * seed + step), lr=0.01 / step)
        if step % steps == 0:
            log.measured(epoch + 1, ap=1 / (step + 2))
            log.record("density", [{"epoch": epoch + 1, "kind": "cls", "low": low / 3} for low in range(2)])


def _assert_same(one: dict[str, pd.DataFrame], other: dict[str, pd.DataFrame]) -> None:
    assert list(one) == list(other)
    for name, table in one.items():
        pd.testing.assert_frame_equal(table, other[name], check_exact=True)


def _files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*.csv"))}


def test_a_row_holds_the_means_since_the_last_row_and_the_rate_of_its_own_step(tmp_path: Path):
    log = _progress(tmp_path, epochs=1)
    finished = [log.step(0, step, dict.fromkeys(VALUES, float(step)), lr=0.1 * step) for step in range(1, 5)]
    assert finished == [False, True, False, True]
    table = log.tables()["log"]
    assert list(table) == COLUMNS
    assert table[["step", "epoch"]].to_numpy().tolist() == [[2, 1], [4, 1]]
    assert all(table[name].tolist() == [1.5, 3.5] for name in VALUES)
    assert table["lr"].tolist() == [0.2, 0.4]


def test_steps_that_an_epoch_leaves_over_are_in_no_row(tmp_path: Path):
    log = _progress(tmp_path)
    for step in range(1, 11):
        log.step((step - 1) // 5, step, dict.fromkeys(VALUES, float(step)), lr=0.1)
    assert log.tables()["log"][["step", "epoch", "loss"]].to_numpy().tolist() == [
        [2, 1, 1.5],
        [4, 1, 3.5],
        [7, 2, 6.5],
        [9, 2, 8.5],
    ]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_stopping_anywhere_leaves_no_trace_in_the_tables_and_files(data: st.DataObject):
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
        state = before.state()
        _run(before, stop + 1, lost, steps=steps, seed=1)
        after = _progress(Path(other), **shape)
        after.restore(state)
        _run(after, stop + 1, epochs * steps, steps=steps)
        _assert_same(after.tables(), whole.tables())
        assert _files(Path(other)) == _files(Path(one))


def test_a_state_survives_a_checkpoint_of_plain_values(tmp_path: Path):
    log = _progress(tmp_path)
    _run(log, 1, 8, steps=5)
    log.measured(1, np.float64(0.25))
    row: dict[str, Any] = {"count": np.int64(3), "share": np.float32(0.5), "tensor": torch.tensor(2.0)}
    log.record("numpy", [row])
    torch.save(log.state(), tmp_path / "state.pth")
    again = _progress(tmp_path)
    again.restore(torch.load(tmp_path / "state.pth", weights_only=True))
    _assert_same(again.tables(), log.tables())
    _run(log, 9, 15, steps=5)
    _run(again, 9, 15, steps=5)
    _assert_same(again.tables(), log.tables())


def test_later_steps_do_not_change_a_state(tmp_path: Path):
    log = _progress(tmp_path)
    _run(log, 1, 7, steps=5)
    state = log.state()
    count, rows = state["count"], [len(table) for table in state["tables"].values()]
    _run(log, 8, 15, steps=5)
    assert state["count"] == count
    assert [len(table) for table in state["tables"].values()] == rows


def test_rows_are_on_disk_as_soon_as_they_are_finished(tmp_path: Path):
    log = _progress(tmp_path)
    _run(log, 1, 2, steps=5)
    assert len(pd.read_csv(tmp_path / "log.csv")) == 1
    _run(log, 3, 5, steps=5)
    for name, table in log.tables().items():
        exactly: dict[str, Any] = {"float_precision": "round_trip"}
        read = pd.read_csv(tmp_path / f"{name}.csv", **exactly)
        pd.testing.assert_frame_equal(read, table, check_exact=True)


def test_a_new_training_replaces_the_files_of_an_older_one(tmp_path: Path):
    _run(_progress(tmp_path), 1, 15, steps=5)
    log = _progress(tmp_path)
    _run(log, 1, 5, steps=5)
    assert {name: len(pd.read_csv(tmp_path / f"{name}.csv")) for name in log.tables()} == {
        "log": 2,
        "validation": 1,
        "density": 2,
    }


def test_a_loss_that_is_not_a_number_is_written_and_read_as_such(tmp_path: Path):
    log = _progress(tmp_path, interval=1)
    log.step(0, 1, {**_values(0), "loss": math.nan, "loss_cls": math.inf}, lr=0.1)
    read = pd.read_csv(tmp_path / "log.csv")
    assert np.isnan(read["loss"].to_numpy()).all() and np.isinf(read["loss_cls"].to_numpy()).all()


def test_rows_of_a_table_have_the_same_columns(tmp_path: Path):
    log = _progress(tmp_path)
    log.record("density", [])
    assert list(log.tables()) == ["log", "validation"]
    log.record("density", [{"epoch": 1}])
    with pytest.raises(ValueError, match="density has other columns than epoch"):
        log.record("density", [{"epoch": 1, "low": 0.5}])
    with pytest.raises(ValueError, match="log is a table of its own"):
        log.record("log", [{"epoch": 1}])


def test_empty_tables_have_their_columns_and_types(tmp_path: Path):
    tables = _progress(tmp_path).tables()
    assert list(tables["log"]) == COLUMNS
    assert tables["validation"].dtypes.astype(str).to_dict() == {"epoch": "int64", "AP": "float64"}
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error(tmp_path: Path):
    log = _progress(tmp_path / "gone", interval=1)
    (tmp_path / "gone").touch()
    with pytest.raises(OSError, match="gone"):
        log.step(0, 1, _values(0), lr=0.1)


def test_an_interval_longer_than_an_epoch_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="interval 6"):
        _progress(tmp_path, interval=6)


def test_seconds_are_those_of_all_starts_without_the_time_between(tmp_path: Path, clock: _Clock):
    log = _progress(tmp_path)
    clock.now += 7
    state = log.state()
    clock.now += 50
    again = _progress(tmp_path)
    again.restore(state)
    clock.now += 5
    assert again.seconds == 12
    again.close()
    clock.now += 9
    assert again.seconds == 12


def test_a_line_tells_all_of_a_row(tmp_path: Path, clock: _Clock, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "ghm.training.progress")
    log = _progress(tmp_path, name="ghmc, seed 0", epochs=2, steps=40, interval=20)
    values = dict(loss=0.6123, loss_cls=0.4012, loss_bbox=0.2111, grad_norm=3.0, positives=80.0)
    for step in range(1, 61):
        clock.now += 0.5
        log.step((step - 1) // 40, step, values, lr=0.0019)
        if step == 40:
            clock.now += 100
            log.measured(1, 0.4123)
    loss = "loss 0.612 (cls 0.401, box 0.211), lr 0.0019"
    assert caplog.messages == [
        f"ghmc, seed 0: epoch 1/2, step 20/40, {loss}, 8.0 images/s, 30 s left",
        f"ghmc, seed 0: epoch 1/2, step 40/40, {loss}, 8.0 images/s, 20 s left",
        "ghmc, seed 0: AP 41.2 after epoch 1 of 2, on a part of the validation split",
        # The break of 100.5 s after the first epoch is expected after the second as well.
        f"ghmc, seed 0: epoch 2/2, step 20/40, {loss}, AP so far 41.2, 8.0 images/s, 1 min 50 s left",
    ]


def test_a_first_step_after_a_restore_tells_no_rate(tmp_path: Path, clock: _Clock, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "ghm.training.progress")
    log = _progress(tmp_path)
    for step in (1, 2, 3):
        clock.now += 1
        log.step(0, step, _values(step), lr=0.1)
    state = log.state()
    again = _progress(tmp_path)
    again.restore(state)
    clock.now += 100
    again.step(0, 4, _values(4), lr=0.1)
    assert "4.0 images/s" not in caplog.messages[-1] and "left" not in caplog.messages[-1]
    assert caplog.messages[-1].endswith("lr 0.1")
    clock.now += 2
    again.step(0, 5, _values(5), lr=0.1)
    clock.now += 30
    again.step(1, 6, _values(6), lr=0.1)
    clock.now += 2
    again.step(1, 7, _values(7), lr=0.1)
    # 8 steps of 2 s, and breaks of 30 s after epochs 2 and 3.
    assert caplog.messages[-1].endswith("2.0 images/s, 1 min 16 s left")


def test_an_ap_of_nothing_is_kept_but_not_shown_as_one(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "ghm.training.progress")
    log = _progress(tmp_path, interval=1)
    log.measured(1, -1.0)
    assert caplog.messages == ["a: no AP after epoch 1 of 3: nothing to find in a part of the validation split"]
    log.step(1, 6, _values(6), lr=0.1)
    assert "AP" not in caplog.messages[-1]
    assert log.tables()["validation"]["AP"].tolist() == [-1.0]


def test_warnings_go_to_the_log_and_on_a_terminal_above_the_bar(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    _progress(tmp_path).warn("one image has no boxes")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "a: one image has no boxes")
    ]
    caplog.clear()
    stream = _Terminal()
    log = _progress(tmp_path, stream=stream)
    log.warn("one image has no boxes")
    log.close()
    assert "\ra: one image has no boxes\n" in stream.getvalue()
    assert not caplog.records


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (160, "epoch 3/3, loss 0.612 (cls 0.401, box 0.211), AP so far 41.2, 8.0 images/s, 00:00 left"),
        (100, "epoch 3/3, loss 0.612 (cls 0.401, box 0.211), AP 41.2, 00:00 left"),
        (80, "epoch 3/3, loss 0.612, AP 41.2, 00:00 left"),
        (60, "epoch 3/3, loss 0.612, 00:00 left"),
    ],
)
def test_a_bar_tells_as_much_as_fits(
    tmp_path: Path, clock: _Clock, monkeypatch: pytest.MonkeyPatch, columns: int, text: str
):
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _stream: (columns, 30))
    stream = _Terminal()
    log = _progress(tmp_path, name="ghmc_ghmr, seed 0", stream=stream)
    values = dict(loss=0.6123, loss_cls=0.4012, loss_bbox=0.2111, grad_norm=3.0, positives=80.0)
    for step in range(1, 16):
        clock.now += 0.5
        log.step((step - 1) // 5, step, values, lr=0.1)
        if step == 10:
            log.measured(2, 0.412)
    log.close()
    frames = [frame for frame in stream.getvalue().split("\r") if "%|" in frame]
    assert max(len(frame.rstrip("\n")) for frame in frames) <= columns
    assert frames[-1].startswith("ghmc_ghmr, seed 0 100%|##")
    assert frames[-1].endswith(f"#| {text}\n")


def test_a_restored_bar_begins_where_the_training_stopped(tmp_path: Path):
    log = _progress(tmp_path)
    _run(log, 1, 9, steps=5)
    stream = _Terminal()
    again = _progress(tmp_path, stream=stream)
    again.restore(log.state())
    assert " 60%|" in stream.getvalue().split("\r")[-1]
    assert "epoch 2/3" in stream.getvalue().split("\r")[-1]
    again.close()


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match="tensorboard is not installed: `pip install tensorboard`, or take it out"):
        _progress(tmp_path, trackers=["tensorboard"])


def _points_of_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    module = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_shows_each_row_once_though_a_training_was_killed(tmp_path: Path):
    pytest.importorskip("tensorboard")
    log = _progress(tmp_path, trackers=["tensorboard"])
    _run(log, 1, 8, steps=5)
    state = log.state()
    _run(log, 9, 15, steps=5, seed=1)
    log.close()
    again = _progress(tmp_path, trackers=["tensorboard"])
    again.restore(state)
    _run(again, 9, 15, steps=5)
    again.close()
    shown = _points_of_tensorboard(tmp_path)
    log_table, validation = again.tables()["log"], again.tables()["validation"]
    assert set(shown) == {*COLUMNS[1:], "AP"}
    for column in COLUMNS[1:]:
        assert [step for step, _ in shown[column]] == log_table["step"].tolist()
        assert [value for _, value in shown[column]] == pytest.approx(log_table[column].tolist(), rel=1e-6)
    assert [step for step, _ in shown["AP"]] == [5, 10, 15]
    assert [value for _, value in shown["AP"]] == pytest.approx(validation["AP"].tolist(), rel=1e-6)
