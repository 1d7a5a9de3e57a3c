"""Laws of trials: each training run is done once, whoever asks for it, and what failed is named."""

import json
import os
from pathlib import Path

import pytest

from ghm import params, presets, runs, sections, training
from ghm.errors import InputError
from ghm.study import definition, trials
from ghm.study.trials import Trial
from tests.study.conftest import ROOT, Trainer, curve, define, run_study

SPLITS = ("val", "test")
PARAMS = Path("params.yaml")


def wanted(name: str) -> list[Trial]:
    study, content = definition.load(name), sections.read(PARAMS)
    return [trial for cell in study.cells() for trial in trials.trials(cell, study.seeds, content)]


def test_a_trial_that_several_studies_and_curves_ask_for_is_one(trainer: Trainer):
    curves = {"FL": curve("fl_sl1", swept=False), "GHM-C": curve("ghmc_sl1"), "default": curve("ghmc_sl1", swept=False)}
    first = wanted(define("first", values=[10, 30], curves=curves, seeds=[0]))
    trials.run_all(first, SPLITS, 3)
    # GHM-C with 30 bins is the default
    assert len(trainer.trained) == len({trial.folder for trial in first}) == 3
    second = wanted(define("second", parameter="ghmc.momentum", values=[0.5, 0.75, 0.9], seeds=[0]))
    momenta = {trial.content["ghmc"]["momentum"] for trial in {*second} - {*first}}
    assert momenta == {0.5, 0.9}


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("epochs: 3 ", "epochs: 4 ", False),
        ("bins: 30 ", "bins: 10 ", True),  # of another variant's loss
        ("  root:  ", "  root: /x ", True),
    ],
)
def test_a_trial_is_another_with_other_parameters_of_its_own(before: str, after: str, same: bool, trainer: Trainer):
    name = define(seeds=[0])
    folder = wanted(name)[0].folder
    assert before in PARAMS.read_text()
    PARAMS.write_text(PARAMS.read_text().replace(before, after))
    assert (wanted(name)[0].folder == folder) is same


def test_a_failed_trial_is_named_with_the_last_line_of_its_log_after_the_others_are_done(trainer: Trainer):
    every = wanted(define(seeds=[0, 1]))
    assert {trial.why_missing(SPLITS) for trial in every} == {"not trained"}
    trainer.level = lambda variant, params: (
        "error: not finite" if (params["ghmc"]["bins"], params["seeds"]) == (10, [0]) else (50.0, 50.0)
    )
    with pytest.raises(InputError, match=r"^1 of 6 .*: \.trials/ghmc_sl1-\w+/seed_0/log\.txt: error: not finite$"):
        trials.run_all(every, SPLITS, 1)
    assert len(trainer.trained) == 6
    why = [trial.why_missing(SPLITS) for trial in every if trial.seed == 0]
    assert why == ["", "not finished, its log ends: error: not finite", ""]


def test_data_and_backbone_are_the_roots_unless_they_are_changed_and_a_dead_link_is_mended(trainer: Trainer):
    every = wanted(define(conditions={"clean": {}, "noisy": {"data.label_noise": 0.3}}, values=[10], seeds=[0]))
    plain, noisy = every[0], every[2]
    plain.folder.mkdir(parents=True)
    (plain.folder / "data").symlink_to("/where/it/was")
    trials.run_all(every, SPLITS, 1)
    assert (plain.folder / "data").resolve() == Path("data").resolve()
    assert not (noisy.folder / "data").exists()
    assert (noisy.folder / "weights").resolve() == Path("weights").resolve()


def test_packages_that_python_is_told_of_are_found_in_a_trial(trainer: Trainer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/some", "/other"]))
    trials.run_all(wanted(define(values=[10], seeds=[0]))[:1], SPLITS, 1)
    assert trainer.environment["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/some", "/other"]


def own(root: str) -> dict[str, object]:
    return {"data.name": "custom", "data.root": root}


def test_data_sets_of_ones_own_that_differ_in_their_folder_alone_have_trials_of_their_own(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OURS", str(tmp_path / "ours"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    named = {"named": own("$OURS/a"), "braced": own("${OURS}/b"), "home": own("~/c"), "relative": own("ours/d")}
    folders = [tmp_path / name for name in ("ours/a", "ours/b", "home/c", "ours/d")]
    for folder in folders:
        folder.mkdir(parents=True)
    run_study(define(conditions=named, values=[10], seeds=[0]))
    assert len(trainer.trained) == len({*trainer.trained}) == 2 * len(named)
    every = [sections.read(Path(".trials", trial, "params.yaml")) for trial in trainer.trained]
    assert {content["data"]["root"] for content in every} == {*map(str, folders)}


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("$NOWHERE/a", r"/\$NOWHERE/a: set the environment variable NOWHERE; the study's file says where to get it"),
        ("nowhere/a", "/nowhere/a: put the data set there; the study's file says where to get it"),
    ],
)
def test_a_data_set_that_is_not_there_is_named_before_anything_is_trained(root: str, words: str, trainer: Trainer):
    with pytest.raises(InputError, match=f"^data.root must be a folder, got .*{words}$"):
        run_study(define(conditions={"digits": {}, "mine": own(root)}))
    assert trainer.trained == []


def test_a_preset_in_a_condition_means_what_it_does_in_params_and_other_changes_come_after_it(trainer: Trainer):
    Path("presets").symlink_to(ROOT / "presets")
    content = sections.read(PARAMS)
    changed = definition.applied(content, {"train.epochs": 2, "preset": "own_cpu"})
    presets.apply("own_cpu")
    meant = sections.read(PARAMS)
    assert content != meant
    assert changed == {**meant, "train": {**meant["train"], "epochs": 2}}
    with pytest.raises(InputError, match=r"^studies/asked.yaml: the preset must be one of bccd_r18, .*, got 'own'$"):
        definition.load(define(conditions={"mine": {"preset": "own"}}))


def test_other_anchors_do_not_pretrain_the_backbone_again(trainer: Trainer):
    (trial, _) = wanted(define(conditions={"scaled": {"model.levels": 4}}, values=[10], seeds=[0]))
    trials.run_all([trial], SPLITS, 1)
    assert (trial.folder / "weights").resolve() == Path("weights").resolve()


def test_a_study_trains_for_real_sums_up_and_does_not_train_again(workspace: Path):
    PARAMS.write_text(PARAMS.read_text().replace("epochs: 2", "epochs: 1"))
    (workspace / "studies").mkdir()
    name = define("real", values=[10], seeds=[0])
    training.train(params.load(), "fl_sl1", Path("runs") / "fl_sl1")
    results, _ = run_study(name)
    logs = {trial.variant: trial.folder / "log.txt" for trial in wanted(name)}
    assert ["already trained" in log.read_text() for log in logs.values()] == [True, False]
    for row, trial in zip(results["rows"], wanted(name), strict=True):
        for split, key in zip(SPLITS, ("chosen_on", "reported_on"), strict=True):
            ap = json.loads((trial.detections(split) / runs.METRICS).read_text())["AP"]
            assert row[key]["0"] == pytest.approx(ap, abs=1e-4)
