"""Stage `evaluate@<variant>`: detections into `detections/<variant>/`, AP of COCO into `metrics/<variant>.json`."""

import sys
from pathlib import Path

from ghm import files, params
from ghm.evaluation.run import HEADLINE, evaluate
from ghm.training import guards, processes
from stages import run


def main() -> None:
    variant = sys.argv[1]
    parameters = params.load()
    with processes.join("none", []), guards.enough_memory(parameters):
        metrics = evaluate(parameters, variant, Path("runs") / variant, Path("detections") / variant)
    files.write_json(Path("metrics") / f"{variant}.json", {name: metrics[name] for name in HEADLINE})


if __name__ == "__main__":
    run(main)
