"""Stage `train@<variant>`: train a variant once a seed into `runs/<variant>/`."""

import sys
from pathlib import Path

from ghm import params, training
from stages import run


def main() -> None:
    variant = sys.argv[1]
    training.train(params.load(), variant, Path("runs") / variant)


if __name__ == "__main__":
    run(main)
