"""Laws of checkpoints: whole or absent, the newest whole one is used, and nothing in one is executed."""

import errno
import itertools
import logging
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghm import files
from ghm.errors import InputError
from ghm.training import state

FORK = multiprocessing.get_context("fork")
NAME = re.compile(r"step_\d{8,}_epoch_\d+-[0-9a-f]{16}\.pth")


def content(step: int, epoch: int = 0, numbers: int = 1000) -> dict[str, Any]:
    """What a training keeps, in small."""
    return {
        "state_dict": {"weight": torch.full((numbers,), float(step))},
        "optimizer": {"state": {}},
        "meta": {"step": step, "epoch": epoch, "place": 0},
        "processes": [{"random": (1, None)}],
        "records": {"log": [[1.5, "a"]]},
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest_step(folder: Path) -> int | None:
    found = state.newest(folder)
    return found[1]["meta"]["step"] if found else None


def put(folder: Path, value: Any, step: int, epoch: int = 0) -> Path:
    """Write anything as a checkpoint whose name has the right checksum."""
    torch.save(value, folder / "new")
    path = folder / f"step_{step:08d}_epoch_{epoch}-{files.digest(folder / 'new')[:16]}.pth"
    return (folder / "new").rename(path)


def test_a_checkpoint_has_steps_epochs_and_its_checksum_in_its_name(tmp_path: Path):
    path = state.save(tmp_path, content(120, 3))
    assert path.parent == tmp_path
    assert path.name == f"step_00000120_epoch_3-{files.digest(path)[:16]}.pth"
    assert names(tmp_path) == [path.name]


def test_what_is_read_is_what_was_saved(tmp_path: Path):
    saved = content(7, 1)
    path = state.save(tmp_path, saved)
    newest = state.newest(tmp_path)
    assert newest and newest[0] == path
    found = newest[1]
    assert torch.equal(found["state_dict"].pop("weight"), saved["state_dict"].pop("weight"))
    assert found == saved


def test_the_two_newest_are_kept(tmp_path: Path):
    paths = [state.save(tmp_path, content(step, step // 2)) for step in range(1, 6)]
    assert names(tmp_path) == [path.name for path in paths[-2:]]
    assert newest_step(tmp_path) == 5


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path):
    for name in ("fingerprint.json", "step_1.pth", "mine.pth", "log.csv"):
        (tmp_path / name).write_text("mine")
    for step in range(1, 4):
        state.save(tmp_path, content(step))
    assert newest_step(tmp_path) == 3
    for name in ("fingerprint.json", "step_1.pth", "mine.pth", "log.csv"):
        assert (tmp_path / name).read_text() == "mine"


def test_a_file_takes_its_name_when_all_of_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What has the name of a checkpoint is whole at every call that touches the disk."""
    seen: list[list[str]] = []

    def look(step: int) -> None:
        found = [path for path in tmp_path.iterdir() if NAME.fullmatch(path.name)]
        assert all(state.read(path)["meta"] for path in found)
        seen.append(sorted(path.name[:13] for path in found))

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (look(1), fsync(handle)))
    state.save(tmp_path, content(1))
    state.save(tmp_path, content(2))
    assert seen == [[], ["step_00000001"], ["step_00000001"], ["step_00000001", "step_00000002"]]


@given(st.lists(st.tuples(st.integers(0, 2 * 10**8), st.integers(0, 200)), min_size=1, max_size=3, unique=True))
@settings(max_examples=20, deadline=None)
def test_the_newest_is_that_of_the_latest_step_and_epoch_by_number(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, int]]
):
    folder = tmp_path_factory.mktemp("order")
    for step, epoch in places:
        put(folder, content(step, epoch), step, epoch)
    found = state.newest(folder)
    assert found
    assert (found[1]["meta"]["step"], found[1]["meta"]["epoch"]) == max(places)
    last = max(places)[0] + 1
    saved = state.save(folder, content(last, 0))
    assert [path.name for path in state.by_age(folder)][-1] == saved.name
    assert len(state.by_age(folder)) == min(2, len(places) + 1)
    shutil.rmtree(folder)


def test_step_one_hundred_million_is_after_the_one_before_it(tmp_path: Path):
    for step in (99_999_999, 100_000_000):
        state.save(tmp_path, content(step))
    assert newest_step(tmp_path) == 100_000_000
    state.save(tmp_path, content(100_000_001))
    assert [int(path.name.split("_")[1]) for path in state.by_age(tmp_path)] == [100_000_000, 100_000_001]


def test_of_two_at_the_same_step_the_one_of_the_later_epoch_is_newer(tmp_path: Path):
    for epoch in (9, 10):
        state.save(tmp_path, content(50, epoch))
    found = state.newest(tmp_path)
    assert found and found[1]["meta"]["epoch"] == 10


def test_a_folder_without_checkpoints_has_no_newest(tmp_path: Path):
    assert state.newest(tmp_path) is None
    assert state.newest(tmp_path / "none") is None


def cut(path: Path) -> Path:
    os.truncate(path, path.stat().st_size * 2 // 3)
    return path


def flip(path: Path) -> Path:
    """Change one bit of a weight, which no reader of the format notices."""
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((1,), 2.0).numpy().tobytes() * 100)] ^= 1
    path.write_bytes(data)
    return path


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def rename(path: Path) -> Path:
    return path.rename(path.with_name(f"{path.name[:-20]}{'0' * 16}.pth"))


@pytest.mark.parametrize("damage", [cut, flip, empty, rename])
def test_a_torn_checkpoint_is_set_aside_and_the_one_before_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
):
    whole = state.save(tmp_path, content(1))
    torn = damage(state.save(tmp_path, content(2)))
    data = torn.read_bytes()
    found = state.newest(tmp_path)
    assert found
    assert (found[0], found[1]["meta"]["step"]) == (whole, 1)
    aside = torn.with_suffix(".torn")
    assert names(tmp_path) == sorted([whole.name, aside.name])
    assert aside.read_bytes() == data
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert str(torn) in record.getMessage() and f"set aside as {aside.name}" in record.getMessage()
    caplog.clear()
    assert newest_step(tmp_path) == 1 and not caplog.records


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_one_changed_byte_anywhere_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    folder = tmp_path_factory.mktemp("flip")
    path = state.save(folder, content(1, numbers=10))
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    with pytest.raises(InputError, match="is damaged: its content does not have the checksum in its name"):
        state.read(path)
    shutil.rmtree(folder)


def test_where_all_are_torn_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for step in (1, 2):
        state.save(tmp_path, content(step))
    for path in state.by_age(tmp_path):
        cut(path)
    assert state.newest(tmp_path) is None
    assert len(caplog.records) == 2
    assert [Path(name).suffix for name in names(tmp_path)] == [".torn"] * 2


def test_after_a_torn_one_the_training_can_save_the_same_step_again(tmp_path: Path):
    state.save(tmp_path, content(1))
    name = cut(state.save(tmp_path, content(2))).name
    assert newest_step(tmp_path) == 1
    assert state.save(tmp_path, content(2)).name == name
    assert newest_step(tmp_path) == 2


def test_remains_of_a_write_that_was_cut_off_are_deleted(tmp_path: Path):
    path = state.save(tmp_path, content(1))
    (tmp_path / f".{path.name.replace('01', '02')}").write_bytes(path.read_bytes()[:100])
    (tmp_path / ".mine").touch()
    assert newest_step(tmp_path) == 1
    assert names(tmp_path) == [".mine", path.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "Input/output error")])
def test_a_write_that_is_broken_off_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    path = state.save(tmp_path, content(1))

    def broken(_handle: int) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises((KeyboardInterrupt, OSError)) as caught:
            state.save(tmp_path, content(2))
    assert not isinstance(caught.value, InputError)
    assert names(tmp_path) == [path.name]
    assert newest_step(tmp_path) == 1


class Hostile:
    """Makes a folder when a pickle of it is loaded without care."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def test_a_hostile_checkpoint_with_a_right_checksum_is_set_aside_and_nothing_of_it_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    executed = tmp_path / "executed"
    whole = state.save(tmp_path, content(1))
    hostile = put(tmp_path, {**content(2), "watch": Hostile(executed)}, 2)
    with pytest.raises(InputError, match="is no checkpoint that can be loaded safely") as caught:
        state.read(hostile)
    assert "\n" not in str(caught.value)
    assert newest_step(tmp_path) == 1
    assert names(tmp_path) == sorted([whole.name, hostile.with_suffix(".torn").name])
    assert "loaded safely" in caplog.text
    torch.load(hostile.with_suffix(".torn"), weights_only=False)
    assert executed.is_dir()  # so it would have


@pytest.mark.parametrize("lacking", sorted(state.NEEDED))
def test_content_that_lacks_a_part_is_refused(tmp_path: Path, lacking: str):
    whole = state.save(tmp_path, content(1))
    given = content(2)
    del given[lacking]
    path = put(tmp_path, given, 2)
    with pytest.raises(InputError, match="holds no state of a training"):
        state.read(path)
    found = state.newest(tmp_path)
    assert found and found[0] == whole


@pytest.mark.parametrize("value", [[1, 2], torch.zeros(3), None, "text"])
def test_what_is_no_dict_is_refused(tmp_path: Path, value: Any):
    with pytest.raises(InputError, match="holds no state of a training"):
        state.read(put(tmp_path, value, 1))


def test_a_checkpoint_under_any_other_name_is_read_without_a_checksum(tmp_path: Path):
    path = state.save(tmp_path, content(3)).rename(tmp_path / "mine.pth")
    assert state.read(path)["meta"]["step"] == 3
    cut(path)
    with pytest.raises(InputError, match=r"mine\.pth is no checkpoint that can be loaded safely"):
        state.read(path)


def save_under_a_limit(folder: Path, answer: Any) -> None:
    """Save a larger checkpoint than a file may be, then the same one without the limit. Tell what was said and left."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        state.save(folder, content(3, numbers=100_000))
    except InputError as error:
        answer.send((str(error), names(folder), newest_step(folder)))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    state.save(folder, content(3, numbers=100_000))


def test_a_file_that_may_not_grow_so_large_leaves_the_checkpoints_before_it(tmp_path: Path):
    before = [state.save(tmp_path, content(step)).name for step in (1, 2)]
    receiver, sender = FORK.Pipe(duplex=False)
    child = FORK.Process(target=save_under_a_limit, args=(tmp_path, sender))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert receiver.poll() and receiver.recv() == (no_room(tmp_path, "402kB"), before, 2)
    assert newest_step(tmp_path) == 3 and len(names(tmp_path)) == 2


def no_room(folder: Path, size: str) -> str:
    return (
        f"no room for a checkpoint of {size} in {folder}: make room, and the same command goes on from the one "
        "before it"
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_checkpoints_before_it_and_room_lets_it_go_on(small_disk: Path):
    number = 150_000  # 600 kB: the third one does not fit beside two and 400 kB of something else
    other = small_disk / "other"
    other.write_bytes(bytes(400_000))
    for step in (1, 2):
        state.save(small_disk, content(step, numbers=number))
    before = {path.name: path.read_bytes() for path in small_disk.iterdir()}
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            state.save(small_disk, content(3, numbers=number))
        assert re.fullmatch(no_room(small_disk, "60[0-9]kB"), str(caught.value))
        assert {path.name: path.read_bytes() for path in small_disk.iterdir()} == before
    assert [state.read(path)["meta"]["step"] for path in state.by_age(small_disk)] == [1, 2]
    other.unlink()
    state.save(small_disk, content(3, numbers=number))
    assert [state.read(path)["meta"]["step"] for path in state.by_age(small_disk)] == [2, 3]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, ""), True),
        (OSError(errno.EDQUOT, ""), True),
        (OSError(errno.EFBIG, ""), True),
        (OSError(errno.EACCES, ""), False),
        (OSError("no number"), False),
        (ValueError(errno.ENOSPC), False),
    ],
)
def test_a_disk_is_full_by_the_number_of_the_error(error: Exception, full: bool):
    assert files.is_full(error) == full


NUMBERS = [
    (np.float64(0.1), 0.1, float),
    (np.float32(0.5), 0.5, float),
    (np.int64(3), 3, int),
    (np.bool_(True), True, bool),
    (np.str_("a"), "a", str),
    (1.5, 1.5, float),
    ("b", "b", str),
    (None, None, type(None)),
]


@pytest.mark.parametrize(("given", "expected", "kind"), NUMBERS)
def test_numbers_of_numpy_become_those_of_python_in_any_nest(given: Any, expected: Any, kind: type):
    nest = {"a": [given, (given, {"b": given})], 1: given}
    made = state.plain(nest)
    assert made == {"a": [expected, (expected, {"b": expected})], 1: expected}
    leaves = [made["a"][0], made["a"][1][0], made["a"][1][1]["b"], made[1]]
    assert [type(leaf) for leaf in leaves] == [kind] * 4
    assert type(made["a"][1]) is tuple


def test_plain_keeps_what_it_is_given_and_tensors_lose_their_graph():
    tensor = torch.ones(2, requires_grad=True) * 2
    nest = {"a": [tensor, np.float64(1)]}
    made = state.plain(nest)["a"]
    assert not made[0].requires_grad and torch.equal(made[0], torch.full((2,), 2.0))
    assert nest["a"][0] is tensor and type(nest["a"][1]) is np.float64


def test_numbers_of_numpy_do_not_keep_a_checkpoint_from_being_read(tmp_path: Path):
    given = {**content(1), "watch": [np.float64(0.25)]}
    with pytest.raises(InputError, match="loaded safely"):
        state.read(put(tmp_path, given, 5))
    assert state.read(state.save(tmp_path, given))["watch"] == [0.25]


def test_a_model_of_other_shapes_is_refused_in_one_sentence():
    model = torch.nn.Linear(3, 2)
    others: list[dict[str, Any]] = [torch.nn.Linear(4, 2).state_dict(), {}, {"weight": 1}]
    for other in others:
        with pytest.raises(InputError) as caught:
            state.fit(Path("a/b.pth"), "model", lambda other=other: model.load_state_dict(other))
        text = str(caught.value)
        assert text.startswith("the model in a/b.pth does not fit this training: Error(s) in loading state_dict")
        assert "\n" not in text and len(text) < 300


def test_an_optimizer_of_another_model_is_refused_in_one_sentence():
    def adam(*sizes: int) -> torch.optim.Optimizer:
        return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(size)) for size in sizes])

    words = "the optimizer in b.pth does not fit this training: "
    for other in (adam(3, 2).state_dict(), {}, {"state": {}}):
        with pytest.raises(InputError, match=words):
            state.fit(Path("b.pth"), "optimizer", lambda other=other: adam(3).load_state_dict(other))


def test_what_fits_is_loaded_and_other_errors_pass():
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    state.fit(Path("b.pth"), "model", lambda: model.load_state_dict(other.state_dict()))
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True))
    for error in (KeyboardInterrupt(), MemoryError(), OSError("disk")):
        with pytest.raises(type(error)):
            state.fit(Path("b.pth"), "model", lambda error=error: next(_raise(error)))


def _raise(error: BaseException) -> Iterator[None]:
    raise error
    yield


def test_every_step_of_a_long_training_can_be_read_back(tmp_path: Path):
    """Save, and lose the newest now and then: there is always one to go on from, of the last step or the one before."""
    lose = itertools.cycle([False, False, True])
    for step in range(1, 13):
        path = state.save(tmp_path, content(step))
        if next(lose):
            cut(path)
            assert newest_step(tmp_path) == step - 1
        else:
            assert newest_step(tmp_path) == step
