"""`python -m ghm.study.trial VARIANT SPLIT...` in the folder of a trial: train, then detect on each split."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from ghm import backbones, data, params, training
from ghm.cli import run
from ghm.evaluation.run import evaluate
from ghm.training import processes


def main() -> None:
    variant, *splits = sys.argv[1:]
    for split in splits:  # another version of the code may have left them: either all is of this one, or nothing is
        shutil.rmtree(split, ignore_errors=True)
    parameters = params.load()
    if not Path("data").is_symlink():
        data.prepare(parameters)
    if not Path("weights").is_symlink():
        backbones.prepare(parameters)
    with processes.join("none", []):
        training.train(parameters, variant, Path("runs") / variant)
        for split in splits:
            judged = replace(parameters, evaluate=replace(parameters.evaluate, split=split))
            evaluate(judged, variant, Path("runs") / variant, Path(split) / "detections" / variant)


if __name__ == "__main__":
    run(main)
