"""`python -m ghm.study bins`: train what the study asks for, then write its table and figure."""

import argparse

from ghm import params, sections
from ghm.cli import run
from ghm.errors import InputError
from ghm.side_by_side import at_once
from ghm.study import definition, page, trials
from ghm.study.comparison import gather


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ghm.study", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="a file of studies/, without .yaml")
    parser.add_argument("--jobs", type=int, help="training runs at once; default: what GPUs, cores and memory allow")
    parser.add_argument("--table", action="store_true", help="train nothing, sum up what has been trained")
    arguments = parser.parse_args()
    study, content = definition.load(arguments.name), sections.read(definition.PARAMS)
    failed = None
    if not arguments.table:
        cells = [trials.trials(cell, study.seeds, content) for cell in study.cells()]
        seed_by_seed = [trial for of_a_seed in zip(*cells, strict=True) for trial in of_a_seed]
        trials.require_data(seed_by_seed)
        try:
            jobs = arguments.jobs or at_once(params.load())
            trials.run_all(seed_by_seed, definition.splits(study), jobs)
        except InputError as error:
            failed = error  # the others are worth a table: a run that diverges is a result, too
    print(page.write(gather(arguments.name, study)), flush=True)
    if failed:
        raise failed


if __name__ == "__main__":
    run(main)
