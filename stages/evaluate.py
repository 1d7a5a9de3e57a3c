"""Stage `evaluate@<variant>`: detections into `detections/<variant>/`, AP of COCO into `metrics/<variant>.json`.

On one device or, as `machine.launcher` says, on many.
"""

import sys
from pathlib import Path

from ghm import files, params
from ghm.evaluation.run import HEADLINE, evaluate
from ghm.training import guards, processes
from stages import run


def main() -> None:
    variant = sys.argv[1]
    parameters = params.load()
    parameters.variant(variant)
    command = [sys.executable, "-m", "stages.evaluate", variant]
    with processes.join(parameters.machine.launcher, command) as job, guards.enough_memory(parameters, "evaluate"):
        metrics = evaluate(parameters, variant, Path("runs") / variant, Path("detections") / variant, job)
        if job.first:
            files.write_json(Path("metrics") / f"{variant}.json", {name: metrics[name] for name in HEADLINE})


if __name__ == "__main__":
    run(main)
