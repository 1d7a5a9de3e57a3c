"""Stage `train@<variant>`: train a variant once per seed into `runs/<variant>/`, on one device or many."""

import sys
from pathlib import Path

from ghm import params, training
from ghm.training import processes
from stages import run


def main() -> None:
    variant = sys.argv[1]
    parameters = params.load()
    parameters.variant(variant)
    with processes.join(parameters.machine.launcher, [sys.executable, "-m", "stages.train", variant]) as job:
        training.train(parameters, variant, Path("runs") / variant, job)


if __name__ == "__main__":
    run(main)
