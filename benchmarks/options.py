"""What each option of GHM-C and GHM-R does on the default data set: train, and judge on the validation split.

    python -m benchmarks.options --seeds 0 1 2

Every other parameter is that of `params.yaml`. The trials are those of `python -m ghm.study`, one thread each and as
many at once as the machine has cores; one that is there already is not trained again. The results go to
`benchmarks/results/options.json`. Needs the manifest and the backbone that `make repro` leaves.
"""

import argparse
import json
import os
from pathlib import Path

import pandas as pd

from ghm import files
from ghm.study import trials

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "options.json"
SPLITS = ("val", "test")  # as the studies have it, which share these trials
KEPT = ("AP", "AP50", "AP75", "APs", "APm", "AR100")

# name: (variant, {section.key: value})
OPTIONS: dict[str, tuple[str, dict[str, object]]] = {
    "fl_sl1": ("fl_sl1", {}),
    "ghmc_sl1": ("ghmc_sl1", {}),
    "ghmc.smoothing=100": ("ghmc_sl1", {"ghmc.smoothing": 100.0}),
    "ghmc.statistics=batch": ("ghmc_sl1", {"ghmc.statistics": "batch"}),
    "ghmc.normalizer=bins": ("ghmc_sl1", {"ghmc.normalizer": "bins"}),
    "ghmc.bias_correction=true": ("ghmc_sl1", {"ghmc.bias_correction": True}),
    "ghmc.smoothing=10": ("ghmc_sl1", {"ghmc.smoothing": 10.0}),
    "ghmc.smoothing=1000": ("ghmc_sl1", {"ghmc.smoothing": 1000.0}),
    "ghmc_ghmr": ("ghmc_ghmr", {}),
    "ghmr.smoothing=10": ("ghmc_ghmr", {"ghmr.smoothing": 10.0}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trials", nargs="+", choices=list(OPTIONS), default=list(OPTIONS))
    parser.add_argument("--table", action="store_true", help="train nothing, only sum up the trials that are there")
    arguments = parser.parse_args()
    if not arguments.table:
        wanted = [trial(name, seed) for seed in arguments.seeds for name in arguments.trials]
        trials.run_all(wanted, SPLITS, os.cpu_count() or 1, ROOT)
    print(summarise())


def trial(name: str, seed: int) -> trials.Trial:
    variant, changes = OPTIONS[name]
    return trials.trial(variant, seed, changes, ROOT)


def summarise() -> str:
    """Write every trial that is done to `RESULT`; return a Markdown table, a row a trial, AP of each seed."""
    done, device = [], {}
    for name, (variant, changes) in OPTIONS.items():
        for folder in sorted(trial(name, 0).folder.parent.glob("seed_*")):
            each = trial(name, int(folder.name.removeprefix("seed_")))
            if trials.lack(each, SPLITS, ROOT):
                continue
            metrics = json.loads((each.run("val") / "metrics.json").read_text())
            context = json.loads((each.folder / "runs" / folder.name / "context.json").read_text())
            kept = {key: metrics[key] for key in KEPT}
            done.append({"trial": name, "variant": variant, "changes": changes, "seed": each.seed, **kept})
            device = {"device": context["device"], "versions": context["versions"]}
    files.write_json(RESULT, {"split": "val", **device, "trials": done})
    rows = []
    for name, own in pd.DataFrame(done).groupby("trial", sort=False):
        seeds = " ".join(f"{ap:.3f}".lstrip("0") for ap in own["AP"])
        means = {key: f"{own[key].mean():.3f}".lstrip("0") for key in ("AP", "AP50", "AP75")}
        rows.append({"trial": name, "AP of each seed": seeds, **means})
    return str(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True, colalign=["left"] + ["right"] * 4))


if __name__ == "__main__":
    main()
