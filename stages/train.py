"""Stage `train@<variant>`: train a variant once a seed into `runs/<variant>/`, on one device or many."""

import sys
from pathlib import Path

from ghm import params, training
from ghm.training import processes
from stages import run


def main() -> None:
    variant = sys.argv[1]
    given = params.load()
    given.variant(variant)
    with processes.join(given.machine.launcher, [sys.executable, "-m", "stages.train", variant]) as job:
        training.train(given, variant, Path("runs") / variant, job)


if __name__ == "__main__":
    run(main)
