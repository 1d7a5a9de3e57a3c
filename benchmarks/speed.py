"""Images a second of a training with each switch of precision and speed, and whether a stop changes it on this device.

    python -m benchmarks.speed --out DIR [--preset tiny]

Trains `ghmc_ghmr` on `digits` for one epoch a setting, and then kills a small training at random moments (see
`benchmarks.faults`). Writes `training_speed.json` and `training_speed.md`. On a CPU it shows that the settings run;
speed is for a GPU.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ruamel.yaml import YAML

from benchmarks import faults
from benchmarks.losses import context
from ghm import files

SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {"tf32": False},
    "fp32, TF32": {},
    "fp32, not channels_last": {"channels_last": False},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "bf16, compile": {"precision": "bf16", "compile": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset")
    parser.add_argument("--kills", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ghm-speed-") as folder:
        place = Path(folder)
        faults.prepare(place / "base", arguments.preset, processes=1)
        with faults.Trainer() as trainer:
            rows = [measured(trainer, place, name) for name in SETTINGS]
        killed = faults.measured(place / "faults", arguments.kills, 1, arguments.preset or "tiny", seed=0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    record = {**context(device), "rows": rows, "killed": killed}
    arguments.out.mkdir(parents=True, exist_ok=True)
    files.write_json(arguments.out / "training_speed.json", record)
    bits = "the same bits" if not killed["different"] else f"{len(killed['different'])} differences"
    table = pd.DataFrame(rows).to_markdown(index=False)
    text = f"{table}\n\nKilled {killed['kills']} times and gone on: {bits}.\n"
    (arguments.out / "training_speed.md").write_text(text, encoding="utf-8")
    print(text)


def measured(trainer: faults.Trainer, place: Path, name: str) -> dict[str, Any]:
    """Train one epoch in a folder of its own."""
    folder = place / name.replace(" ", "_").replace(",", "")
    shutil.copytree(place / "base", folder, symlinks=True)
    yaml = YAML()
    content = yaml.load(folder / "params.yaml")
    content["train"].update({"epochs": 1, "val_images": 0, "ema_momentum": None, **SETTINGS[name]})
    content["machine"].update(workers=4, checkpoint_minutes=60)
    yaml.dump(content, folder / "params.yaml")
    trainer.finish(folder)
    run = folder / "runs" / faults.VARIANT / "seed_0"
    record = json.loads((run / "context.json").read_text(encoding="utf-8"))
    loss = pd.read_csv(run / "log.csv")["loss"].iloc[-1]
    return {"setting": name, "images/s": round(record["images"] / record["seconds"], 1), "last loss": round(loss, 3)}


if __name__ == "__main__":
    main()
