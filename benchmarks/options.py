"""What each option of GHM-C and GHM-R does on the default data set: train, and judge on the validation split.

    python -m benchmarks.options --seeds 0 1 2

Every other parameter is that of `params.yaml`. A trial trains in a folder of its own under `.trials/`, one thread each
and as many at once as the machine has cores; one that is there already is not trained again. The results go to
`benchmarks/results/options.json`. Needs the manifest and the backbone that `make repro` leaves.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML
from tqdm import tqdm

from ghm import files

ROOT = Path(__file__).parents[1]
TRIALS = ROOT / ".trials"
RESULT = ROOT / "benchmarks" / "results" / "options.json"
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
    jobs = [] if arguments.table else [(name, seed) for seed in arguments.seeds for name in arguments.trials]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(tqdm(pool.map(lambda job: run(*job), jobs), total=len(jobs), unit="trial"))
    print(summarise())


def run(name: str, seed: int) -> None:
    """Train and evaluate one trial, unless its metrics are there."""
    variant, changes = OPTIONS[name]
    trial(TRIALS / f"{name}-seed_{seed}", variant, seed, {**changes, "evaluate.split": "val"})


def trial(folder: Path, variant: str, seed: int, changes: dict[str, object]) -> None:
    """Train and evaluate `variant` in `folder`, with one thread, unless its metrics are there."""
    if (folder / "metrics").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    yaml = YAML()
    content = yaml.load(ROOT / "params.yaml")
    for key, value in changes.items():
        section, item = key.split(".")
        content[section][item] = value
    content["seeds"] = [seed]
    yaml.dump(content, folder / "params.yaml")
    for shared in ("data", "weights"):
        if not (folder / shared).exists():
            (folder / shared).symlink_to(ROOT / shared)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (folder / "log.txt").open("w") as log:
        for stage in ("train", "evaluate"):
            command = [sys.executable, "-m", f"stages.{stage}", variant]
            subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=True)


def summarise() -> str:
    """Write every trial that is done to `RESULT`; return a Markdown table, a row a trial, AP of each seed."""
    trials, device = [], {}
    for name, (variant, changes) in OPTIONS.items():
        for folder in sorted(TRIALS.glob(f"{name}-seed_*")):
            for path in (folder / "metrics").glob("*.json"):
                metrics = json.loads(path.read_text())
                context = json.loads(next(folder.glob("runs/*/*/context.json")).read_text())
                seed = int(folder.name.rsplit("_", 1)[1])
                kept = {key: metrics[key] for key in KEPT}
                trials.append({"trial": name, "variant": variant, "changes": changes, "seed": seed, **kept})
                device = {"device": context["device"], "versions": context["versions"]}
    files.write_json(RESULT, {"split": "val", **device, "trials": trials})
    rows = []
    for name, own in pd.DataFrame(trials).groupby("trial", sort=False):
        seeds = " ".join(f"{ap:.3f}".lstrip("0") for ap in own["AP"])
        means = {key: f"{own[key].mean():.3f}".lstrip("0") for key in ("AP", "AP50", "AP75")}
        rows.append({"trial": name, "AP of each seed": seeds, **means})
    return str(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True, colalign=["left"] + ["right"] * 4))


if __name__ == "__main__":
    main()
