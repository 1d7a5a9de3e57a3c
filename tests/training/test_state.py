"""Laws of checkpoints: whole or absent, the newest whole one is used, and nothing in one is executed."""

import multiprocessing
import os
import re
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ghm import files
from ghm.errors import InputError
from ghm.training import state

FORK = multiprocessing.get_context("fork")
NAME = re.compile(r"step_\d{10}_epoch_\d{6}-[0-9a-f]{16}\.pth")


def content(step: int, epoch: int = 0, numbers: int = 1000) -> dict[str, Any]:
    """What a run keeps, in small."""
    return {
        "state_dict": {"weight": torch.full((numbers,), float(step))},
        "optimizer": {"state": {}},
        "meta": {"step": step, "epoch": epoch, "step_in_epoch": 0},
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
    path = folder / f"step_{step:010d}_epoch_{epoch:06d}-{files.digest(folder / 'new')[:16]}.pth"
    return (folder / "new").rename(path)


def test_a_checkpoint_has_steps_epochs_and_its_checksum_in_its_name(tmp_path: Path):
    path = state.save(tmp_path, content(120, 3))
    assert path.parent == tmp_path
    assert path.name == f"step_0000000120_epoch_000003-{files.digest(path)[:16]}.pth"
    assert names(tmp_path) == [path.name]
    path = path.rename(tmp_path / "mine.pth")
    assert state.read(path)["meta"]["step"] == 120  # under another name, without a checksum
    with pytest.raises(InputError, match=r"mine\.pth is no checkpoint that can be loaded safely"):
        state.read(cut(path))


def test_the_two_newest_are_kept_and_other_files_left_alone(tmp_path: Path):
    assert state.newest(tmp_path) is None
    for name in ("fingerprint.json", "step_1.pth"):
        (tmp_path / name).write_text("mine")
    paths = [state.save(tmp_path, content(step, step // 2)) for step in range(1, 6)]
    assert names(tmp_path) == ["fingerprint.json", *(path.name for path in paths[-2:]), "step_1.pth"]
    assert newest_step(tmp_path) == 5


def test_a_file_takes_its_name_when_all_of_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What has the name of a checkpoint is whole at every call that touches the disk."""
    seen: list[list[str]] = []

    def look(step: int) -> None:
        found = [path for path in tmp_path.iterdir() if NAME.fullmatch(path.name)]
        assert all(state.read(path)["meta"] for path in found)
        seen.append(sorted(path.name[:15] for path in found))

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (look(1), fsync(handle)))
    state.save(tmp_path, content(1))
    state.save(tmp_path, content(2))
    assert seen == [[], ["step_0000000001"], ["step_0000000001"], ["step_0000000001", "step_0000000002"]]


def cut(path: Path) -> Path:
    os.truncate(path, path.stat().st_size * 2 // 3)
    return path


def flip(path: Path) -> Path:
    """Change one bit of a weight, which no reader of the format notices."""
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((1,), 2.0).numpy().tobytes() * 100)] ^= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("damage", [cut, flip])
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
    assert f"set aside as {aside.name}" in caplog.text and str(torn) in caplog.text
    caplog.clear()
    assert newest_step(tmp_path) == 1 and not caplog.records
    state.save(tmp_path, content(2))
    assert newest_step(tmp_path) == 2


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


def save_under_a_limit(folder: Path, larger: dict[str, Any], answer: Any) -> None:
    """Save a larger checkpoint than a file may be, then the same one without the limit. Tell what was said and left."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        state.save(folder, larger)
    except InputError as error:
        answer.send((str(error), names(folder)))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    state.save(folder, larger)


def test_a_full_disk_leaves_the_checkpoints_before_it(tmp_path: Path):
    before = [state.save(tmp_path, content(step)).name for step in (1, 2)]
    receiver, sender = FORK.Pipe(duplex=False)
    larger = content(3, numbers=100_000)  # filled here: a forked child has no threads to fill it
    child = FORK.Process(target=save_under_a_limit, args=(tmp_path, larger, sender))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    said, left = receiver.recv()
    assert said.startswith(f"no room to write {tmp_path}/step_0000000003_epoch_000000-") and left == before
    assert newest_step(tmp_path) == 3 and len(names(tmp_path)) == 2


def test_numbers_of_numpy_do_not_keep_a_checkpoint_from_being_read(tmp_path: Path):
    path = state.save(tmp_path, {**content(1), "watch": [np.float64(0.25)]})
    assert state.read(path)["watch"] == [0.25]


def test_what_is_of_another_model_is_refused_in_one_sentence(tmp_path: Path):
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(4, 2).state_dict()
    with pytest.raises(InputError, match=r"^the model in a/b\.pth does not fit this run: [^\n]{1,200}$"):
        state.fit(Path("a/b.pth"), "model", lambda: model.load_state_dict(other))
    with pytest.raises(InputError, match="holds no state of a training run"):
        state.read(put(tmp_path, [1, 2], 3))
