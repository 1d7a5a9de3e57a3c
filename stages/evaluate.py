"""Stage `evaluate@<variant>`: detections into `detections/<variant>/`, AP of COCO into `metrics/<variant>.json`."""

import sys
from pathlib import Path

from ghm import files, params
from ghm.evaluation.run import HEADLINE, evaluate
from ghm.training import processes
from stages import run


def main() -> None:
    variant = sys.argv[1]
    with processes.join("none", []):
        metrics = evaluate(params.load(), variant, Path("runs") / variant, Path("detections") / variant)
    files.write_json(Path("metrics") / f"{variant}.json", {name: metrics[name] for name in HEADLINE})


if __name__ == "__main__":
    run(main)
