"""`python -m ghm.study bins`: train what the study asks for, then write its table and figure."""

import argparse
import os

import torch

from ghm.cli import run
from ghm.study import definition, trials

SPLITS = ("val", "test")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ghm.study", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="+", help="a file of studies/, without .yaml")
    parser.add_argument("--jobs", type=int, help="trainings at once; as many as there are GPUs, or else cores")
    arguments = parser.parse_args()
    jobs = arguments.jobs or torch.cuda.device_count() or os.cpu_count() or 1
    for name in arguments.names:
        study = definition.load(name)
        wanted = [
            trials.trial(cell.variant, seed, cell.changes) for seed in study.seeds for cell in definition.cells(study)
        ]
        trials.run_all(wanted, SPLITS, jobs)


if __name__ == "__main__":
    run(main)
