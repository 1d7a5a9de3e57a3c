"""AP of every variant of `params.yaml` on the reported split, by seed.

    python -m benchmarks.seeds

Trains like `dvc exp run -S 'seeds=[0,1,2]'`, but each training in a folder of its own under `.trials/`, with one thread
and as many at once as the machine has cores; one that is there already is not trained again. The results go to
`benchmarks/results/seeds.json`. Needs the manifest and the backbone that `make repro` leaves.
"""

import argparse
import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from benchmarks.options import KEPT, TRIALS, trial
from ghm import files, params

RESULT = Path(__file__).parent / "results" / "seeds.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    given = params.load()
    jobs: list[tuple[int, str]] = list(itertools.product(arguments.seeds, given.variants))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(tqdm(pool.map(lambda job: trial(place(*job), job[1], job[0], {}), jobs), total=len(jobs), unit="training"))
    rows = [measured(*job) for job in jobs]
    context = json.loads(next(place(*jobs[0]).glob("runs/*/*/context.json")).read_text())
    kept = {key: context[key] for key in ("dataset", "device", "versions")}
    files.write_json(RESULT, {"split": given.evaluate.split, **kept, "rows": rows})
    print(pd.DataFrame(rows).pivot(index="variant", columns="seed", values="AP"))


def place(seed: int, variant: str) -> Path:
    return TRIALS / f"reported-{variant}-seed_{seed}"


def measured(seed: int, variant: str) -> dict[str, object]:
    metrics = json.loads((place(seed, variant) / "metrics" / f"{variant}.json").read_text())
    return {"variant": variant, "seed": seed, **{key: metrics[key] for key in KEPT}}


if __name__ == "__main__":
    main()
