"""`python -m ghm.study bins`: train what the study asks for, then write its table and figure."""

import argparse
import os

import torch

from ghm.cli import run
from ghm.errors import InputError
from ghm.study import definition, results, trials


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ghm.study", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="+", help="a file of studies/, without .yaml")
    parser.add_argument("--jobs", type=int, help="trainings at once; as many as there are GPUs, or else cores")
    parser.add_argument("--table", action="store_true", help="train nothing, sum up the trainings that are there")
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    studies = {name: definition.load(name) for name in arguments.names}
    failures: list[str] = []
    for name, study in studies.items():
        try:
            if not arguments.table:
                wanted = [
                    trials.trial(cell.variant, seed, cell.changes)
                    for seed in study.seeds
                    for cell in definition.cells(study)
                ]
                jobs = arguments.jobs or torch.cuda.device_count() or cores
                trials.run_all(wanted, definition.splits(study), jobs)
        except InputError as error:
            failures.append(str(error))  # the others are worth a table: a training that diverges is a result, too
        try:
            print(results.write(name, study, arguments.jobs or cores), flush=True)
        except InputError as error:
            failures.append(str(error))
    if failures:
        raise InputError("; ".join(failures))


if __name__ == "__main__":
    run(main)
