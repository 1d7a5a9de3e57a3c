"""Laws of writing: whole or not at all."""

from pathlib import Path

import pytest

from ghm import files


def test_a_folder_appears_whole_and_takes_the_place_of_the_old_one(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(KeyboardInterrupt), files.whole_folder(out) as folder:
        (folder / "half").touch()
        raise KeyboardInterrupt
    assert [path.name for path in out.iterdir()] == ["old"]
    with files.whole_folder(out) as folder:
        (folder / "new").touch()
        assert (out / "old").exists()
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_value_that_json_lacks_leaves_no_file(tmp_path: Path):
    path = tmp_path / "metrics.json"
    files.write_json(path, {"AP": 0.5})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"AP": float("nan")})
    assert path.read_text() == '{\n "AP": 0.5\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.json"]
