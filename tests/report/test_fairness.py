"""Laws of what may stand in one table."""

import json
from pathlib import Path

import pytest

from ghm import report
from ghm.errors import InputError
from ghm.report.inputs import read
from tests.report.artificial_runs import fill, write_json


def change(root: Path, variant: str, seed: int, **values: object) -> None:
    """Set keys of what a training recorded."""
    path = root / "runs" / variant / f"seed_{seed}" / "context.json"
    write_json(path, {**json.loads(path.read_text()), **values})


def test_runs_of_other_code_or_data_are_refused_with_the_list(tmp_path: Path) -> None:
    params = fill(tmp_path, seeds=2)
    path = tmp_path / "runs/fl_sl1/seed_0/context.json"
    own = json.loads(path.read_text())["conditions"]
    change(tmp_path, "ghmc_sl1", 1, conditions={**own, "code": "ffff", "data": "eeee"}, revision="fedcba9")
    change(tmp_path, "ghmc_ghmr", 0, conditions={**own, "code": "ffff"}, revision="fedcba9")
    with pytest.raises(InputError) as error:
        report.write(params, tmp_path)
    text = str(error.value)
    first = "differs from fl_sl1, seed 0 (revision 0123abc) in"
    assert f"ghmc_sl1, seed 1 (revision fedcba9) {first} code;" in text
    assert "ghmc_sl1, seed 1 was trained on other data than data/digits.json describes;" in text
    assert f"ghmc_ghmr, seed 0 (revision fedcba9) {first} code" in text
    assert "ghmc_sl1, seed 0" not in text
    assert text.endswith("run `dvc repro`")
    assert not (tmp_path / "reports").exists()


def test_runs_of_another_data_set_are_refused(tmp_path: Path) -> None:
    params = fill(tmp_path)
    change(tmp_path, "ghmc_sl1", 0, dataset="voc")
    with pytest.raises(InputError, match="ghmc_sl1, seed 0 was trained on voc, and the report is on digits"):
        read(params, tmp_path)


@pytest.mark.parametrize("key", ["annotations_sha256", "files_sha256"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_runs_on_other_data_than_the_manifest_describes_are_refused(tmp_path: Path, key: str, split: str) -> None:
    """Also where all were trained and measured on the same."""
    params = fill(tmp_path)
    path = tmp_path / "data/digits.json"
    manifest = json.loads(path.read_text())
    manifest["splits"][split][key] = "f" * 64
    write_json(path, manifest)
    with pytest.raises(InputError) as error:
        read(params, tmp_path)
    words = "trained on other data" if split == "train" else "measured on other annotations or images of test"
    for variant in params.variants:
        assert f"{variant}, seed 0 was {words} than data/digits.json describes" in str(error.value)


def test_another_commit_with_the_same_code_may_stand_beside_it(tmp_path: Path) -> None:
    params = fill(tmp_path)
    change(tmp_path, "ghmc_sl1", 0, revision="fedcba9")
    assert read(params, tmp_path).contexts["ghmc_sl1"][0]["revision"] == "fedcba9"
