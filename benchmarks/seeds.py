"""AP of every variant of `params.yaml` on the reported split, by seed.

    python -m benchmarks.seeds

The trials are those of `python -m ghm.study`, one thread each and as many at once as the machine has cores; one that is
there already is not trained again. The results go to `benchmarks/results/seeds.json`. Needs the manifest and the
backbone that `make repro` leaves.
"""

import argparse
import itertools
import json
import os
from pathlib import Path

import pandas as pd

from benchmarks.options import KEPT, ROOT, SPLITS
from ghm import files, params
from ghm.study import trials

RESULT = Path(__file__).parent / "results" / "seeds.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    given = params.load()
    jobs = [
        trials.trial(variant, seed, {}, ROOT) for seed, variant in itertools.product(arguments.seeds, given.variants)
    ]
    trials.run_all(jobs, SPLITS, os.cpu_count() or 1, ROOT)
    rows = [measured(each, given.evaluate.split) for each in jobs]
    context = json.loads((jobs[0].folder / "runs" / f"seed_{jobs[0].seed}" / "context.json").read_text())
    kept = {key: context[key] for key in ("dataset", "device", "versions")}
    files.write_json(RESULT, {"split": given.evaluate.split, **kept, "rows": rows})
    print(pd.DataFrame(rows).pivot(index="variant", columns="seed", values="AP"))


def measured(each: trials.Trial, split: str) -> dict[str, object]:
    metrics = json.loads((each.run(split) / "metrics.json").read_text())
    return {"variant": each.variant, "seed": each.seed, **{key: metrics[key] for key in KEPT}}


if __name__ == "__main__":
    main()
