"""Laws of the trainings: each is done once, whoever asks for it, and what failed is named."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ghm import fingerprint, params, training
from ghm.errors import InputError
from ghm.evaluation.bootstrap import Resampled
from ghm.study import __main__ as command
from ghm.study import definition, trials
from ghm.study.trials import Trial
from tests.study.conftest import Trainer, curve

SPLITS = ("val", "test")


def wanted(name: str) -> list[Trial]:
    study = definition.load(name)
    return [trials.trial(cell.variant, seed, cell.changes) for seed in study.seeds for cell in definition.cells(study)]


def test_what_is_trained_is_not_trained_again(trainer: Trainer, define: Callable[..., str]):
    name = define(seeds=[0, 1])
    trials.run_all(wanted(name), SPLITS, 1)
    assert len(trainer.trained) == len(set(trainer.trained)) == 6
    trials.run_all(wanted(name), SPLITS, 1)
    assert len(trainer.trained) == 6


def test_two_studies_share_a_training(trainer: Trainer, define: Callable[..., str]):
    trials.run_all(wanted(define("first", values=[10, 30], seeds=[0])), SPLITS, 1)
    before = list(trainer.trained)
    # GHM-C with 30 bins is the default, as is Focal Loss: what remains are two momenta
    second = define("second", parameter="ghmc.momentum", values=[0.5, 0.75, 0.9], seeds=[0])
    trials.run_all(wanted(second), SPLITS, 1)
    after = trainer.trained[len(before) :]
    assert [re.sub("-.*", "", path) for path in after] == ["ghmc_sl1,ghmc.momentum=0.5", "ghmc_sl1,ghmc.momentum=0.9"]


def test_a_training_that_is_asked_for_twice_at_once_is_done_once(trainer: Trainer, define: Callable[..., str]):
    curves = {"FL": curve("fl_sl1", swept=False), "GHM-C": curve("ghmc_sl1"), "default": curve("ghmc_sl1", swept=False)}
    trials.run_all(wanted(define(values=[30], curves=curves, seeds=[0])), SPLITS, 3)
    assert len(trainer.trained) == 2


@pytest.mark.parametrize("what", ["parameters", "code", "splits"])
def test_other_parameters_code_or_splits_are_trained_anew(what: str, trainer: Trainer, monkeypatch: pytest.MonkeyPatch):
    one = [trials.trial("fl_sl1", 0, {})]
    trials.run_all(one, SPLITS, 1)
    if what == "parameters":
        path = Path("params.yaml")
        path.write_text(path.read_text().replace("epochs: 3 ", "epochs: 4 "))
    elif what == "code":
        monkeypatch.setattr(fingerprint, "code", lambda _losses: {"head.py": "another"})
    trials.run_all(one, SPLITS if what != "splits" else SPLITS[:1] * 2, 1)
    assert len(trainer.trained) == 2


def test_a_failed_training_is_named_with_the_last_line_of_its_log_after_the_others_are_done(
    trainer: Trainer, define: Callable[..., str]
):
    name = define(seeds=[0, 1])
    trainer.level = lambda variant, params: (
        "error: the loss is not finite" if (params["ghmc"]["bins"], params["seeds"]) == (10, [0]) else (50.0, 50.0)
    )
    with pytest.raises(InputError, match="^1 of 6 training runs failed: ") as raised:
        trials.run_all(wanted(name), SPLITS, 1)
    (log,) = Path(".trials").glob("ghmc_sl1,ghmc.bins=10-*/seed_0/log.txt")
    assert str(raised.value).endswith(f"{log}: error: the loss is not finite")
    assert len(trainer.trained) == 6
    trainer.level = lambda variant, params: (50.0, 50.0)
    trials.run_all(wanted(name), SPLITS, 1)
    assert len(trainer.trained) == 7, "only what failed is tried again"


def test_what_is_lacking_says_why(trainer: Trainer):
    each = trials.trial("fl_sl1", 0, {})
    assert trials.lack(each, SPLITS) == "not trained"
    trainer.level = lambda variant, params: "error: no room"
    with pytest.raises(InputError):
        trials.run_all([each], SPLITS, 1)
    assert trials.lack(each, SPLITS) == "not finished, its log ends: error: no room"
    trainer.level = lambda variant, params: (50.0, 50.0)
    trials.run_all([each], SPLITS, 1)
    assert trials.lack(each, SPLITS) == ""
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("epochs: 3 ", "epochs: 4 "))
    assert trials.lack(each, SPLITS) == "done with other parameters or splits"


def test_data_and_backbone_are_the_roots_unless_they_are_changed_and_a_dead_link_is_mended(trainer: Trainer):
    plain, noisy = trials.trial("fl_sl1", 0, {}), trials.trial("fl_sl1", 0, {"data.label_noise": 0.3})
    plain.folder.mkdir(parents=True)
    (plain.folder / "data").symlink_to("/where/it/was")
    trials.run_all([plain, noisy], SPLITS, 1)
    assert (plain.folder / "data").resolve() == Path("data").resolve()
    assert not (noisy.folder / "data").is_symlink()
    assert (noisy.folder / "weights").resolve() == Path("weights").resolve()


def test_a_study_trains_for_real_sums_up_and_does_not_train_again(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    path = workspace / "params.yaml"
    path.write_text(path.read_text().replace("epochs: 2", "epochs: 1"))
    (workspace / "studies").mkdir()
    (workspace / "studies" / "real.yaml").write_text(
        """
        question: Do fewer bins do?
        parameter: ghmc.bins
        values: [10]
        variants: {}
        curves:
          FL: {variant: fl_sl1, changes: {}, swept: false}
          GHM-C: {variant: ghmc_sl1, changes: {}, swept: true}
        conditions: {clean: {}}
        seeds: [0, 1]
        published: []
        """
    )
    training.train(params.load(), "fl_sl1", Path("runs") / "fl_sl1")
    monkeypatch.setattr(sys, "argv", ["study", "real"])
    command.main()
    logs = [log.read_text() for seed in (0, 1) for log in workspace.glob(f".trials/fl_sl1-*/seed_{seed}/log.txt")]
    assert ["already trained" in log for log in logs] == [True, False], "what the pipeline has trained is taken"
    found = json.loads((workspace / "reports" / "studies" / "real.json").read_text())
    assert [sorted(cell["test"]["AP"]["seeds"]) for cell in found["cells"]] == [["0", "1"], ["0", "1"]]
    (reference,) = workspace.glob(".trials/fl_sl1-*/seed_1")
    metrics = {split: reference / "detections" / split / "seed_1" / "metrics.json" for split in SPLITS}
    for split, metric in metrics.items():
        assert found["cells"][0][split]["AP"]["seeds"]["1"] == json.loads(metric.read_text())["AP"]

    logs = {log: log.stat().st_mtime_ns for log in workspace.glob(".trials/*/*/log.txt")}
    resampled = metrics["test"].with_name("resampled.npz")
    before = Resampled.load(resampled).value_B["AP"]
    resampled.unlink()
    (outdated,) = workspace.glob(".trials/fl_sl1-*/seed_0/detections/test/seed_0/resampled.npz")
    os.utime(outdated, (0, 0))
    monkeypatch.setattr(sys, "argv", ["study", "real", "--jobs", "1"])
    command.main()
    assert {log: log.stat().st_mtime_ns for log in logs} == logs
    assert json.loads((workspace / "reports" / "studies" / "real.json").read_text()) == found
    assert (Resampled.load(resampled).value_B["AP"] == before).all(), "made where it was missing"
    assert outdated.stat().st_mtime > 0, "and where it was older than the detections"
