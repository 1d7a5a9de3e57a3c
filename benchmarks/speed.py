"""Images a second of a training run with each switch of precision and speed, and its memory.

    python -m benchmarks.speed --out DIR [--preset tiny] [--budget SECONDS]

Trains `ghmc_ghmr` on 400 images of `digits` in one process: for one epoch, then for three, and divides the images of
the two more by the seconds that they took, so that starting, compiling and the first measurements do not count. The
setting that takes longest comes last. Writes `training_speed.json` and `training_speed.md` after each. On a CPU it
shows that the settings run; speed is for a GPU.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks import faults
from benchmarks.losses import context
from ghm import files, params, runs, training

IMAGES = 400
EPOCHS = (1, 3)
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32, TF32": {},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "fp32": {"tf32": False},
    "fp32, TF32, not channels_last": {"channels_last": False},
    "bf16, compile": {"precision": "bf16", "compile": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset")
    parser.add_argument(
        "--budget", type=float, default=float("inf"), help="seconds after which no further one is begun"
    )
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="ghm-speed-") as folder:
        faults.prepare(Path(folder) / "run", arguments.preset, processes=1, images=None if arguments.preset else IMAGES)
        os.chdir(Path(folder) / "run")
        start = time.monotonic()
        for name, changes in SETTINGS.items():
            if rows and time.monotonic() - start > arguments.budget:
                print(f"out of time: {name} not measured", file=sys.stderr)
                continue
            rows.append({"setting": name, **measured(changes)})
            device = "cuda" if torch.cuda.is_available() else "cpu"
            files.write_json(out / "training_speed.json", {**context(device), "rows": rows})
            table = pd.DataFrame(rows).to_markdown(index=False)
            (out / "training_speed.md").write_text(f"{table}\n", encoding="utf-8")
        os.chdir(out)
    print((out / "training_speed.md").read_text(encoding="utf-8"))


def measured(changes: dict[str, Any]) -> dict[str, Any]:
    """Train a short and a longer run."""
    parameters = params.load()
    records, losses = [], []
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for epochs in EPOCHS:
        train = dataclasses.replace(parameters.train, epochs=epochs, val_images=0, ema_momentum=None, **changes)
        machine = dataclasses.replace(parameters.machine, workers=0, checkpoint_minutes=60.0)
        training.train(
            dataclasses.replace(parameters, train=train, machine=machine), faults.VARIANT, Path("runs") / faults.VARIANT
        )
        folder = runs.run_folder(faults.VARIANT, 0)
        records.append(runs.Record.read(folder))
        losses.append(pd.read_csv(folder / runs.LOG)["loss"].iloc[-1])
    short, long = records
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    images = long.images * (EPOCHS[1] - EPOCHS[0])
    return {
        "images/s": round(images / (long.seconds - short.seconds), 1),
        "GiB": memory and round(memory, 2),
        "last loss": round(losses[-1], 3),
    }


if __name__ == "__main__":
    main()
