"""What `make fit` is worth: a folder at 128 pixels with the default anchors, and with what it sets, three seeds each.

    python -m benchmarks.fit FOLDER

Trains and evaluates `fl_sl1` with the preset `own_cpu` before and after `python -m ghm.fit`, in a copy of this
repository in a temporary folder that is kept. The difference has the interval that the report gives. Writes
`benchmarks/results/fit.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.scale import ROOT, copy_repository
from ghm.evaluation.bootstrap import Resampled
from ghm.report.comparison import difference, interval

RESULT = ROOT / "benchmarks" / "results" / "fit.json"
SEEDS = [0, 1, 2]
SETTING = ("anchors", "levels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.absolute()
    clone = Path(tempfile.mkdtemp(prefix="ghm-fit-"))
    print(f"running in {clone}")
    copy_repository(clone)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GHM_DATA_ROOT": str(clone / "store")}

    def call(*command: str) -> str:
        return subprocess.run(command, cwd=clone, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout

    call(sys.executable, "-m", "ghm.presets", "own_cpu", str(folder))
    yaml, params = YAML(), clone / "params.yaml"
    content = yaml.load(params)
    content["seeds"], content["train"]["image_scale"] = SEEDS, [128, 128]
    yaml.dump(content, params)
    record: dict[str, Any] = {"folder": folder.name, "variant": "fl_sl1", "epochs": content["train"]["epochs"]}
    resampled = {}
    for name in ("before", "after"):
        if name == "after":
            call("dvc", "repro", "data")
            record["said"] = call(sys.executable, "-m", "ghm.fit").splitlines()[0]
        call("dvc", "repro", "evaluate@fl_sl1")
        folders = [clone / "detections" / "fl_sl1" / f"seed_{seed}" for seed in SEEDS]
        resampled[name] = [Resampled.load(path / "resampled.npz") for path in folders]
        content = yaml.load(params)
        estimate = interval(resampled[name], "AP")
        assert estimate
        record[name] = {
            "image_scale": [*content["train"]["image_scale"]],
            **{key: json.loads(json.dumps(content["model"][key])) for key in SETTING},
            "AP": asdict(estimate),
            "AP of each seed": [float(seed.value_B["AP"][0]) for seed in resampled[name]],
        }
    minus = difference(resampled["after"], resampled["before"], "AP")
    assert minus
    record["difference"] = asdict(minus)
    context = json.loads((clone / "runs" / "fl_sl1" / "seed_0" / "context.json").read_text())
    record |= {"device": context["device"], "versions": context["versions"]}
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
