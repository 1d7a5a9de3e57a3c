"""`python -m ghm.study.trial VARIANT SPLIT...` in the folder of a trial: train, then detect on each split."""

import sys
from dataclasses import replace
from pathlib import Path

from ghm import backbones, data, params, training
from ghm.cli import run
from ghm.evaluation.run import evaluate
from ghm.training import processes


def main() -> None:
    variant, *splits = sys.argv[1:]
    given = params.load()
    if not Path("data").is_symlink():
        data.prepare(given)
    if not Path("weights").is_symlink():
        backbones.prepare(given)
    with processes.join("none", []):
        training.train(given, variant, Path("runs"))
        for split in splits:
            reported = replace(given, evaluate=replace(given.evaluate, split=split))
            evaluate(reported, variant, Path("runs"), Path("detections") / split)


if __name__ == "__main__":
    run(main)
