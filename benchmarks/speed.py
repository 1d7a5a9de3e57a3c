"""Images a second of a training with each switch of precision and speed.

    python -m benchmarks.speed --out DIR [--preset tiny]

Trains `ghmc_ghmr` on 1,600 images of `digits` for one epoch a setting, the setting that matters most first. Writes
`training_speed.json` and `training_speed.md` after each. On a CPU it shows that the settings run; speed is for a GPU.
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

IMAGES = 1600
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32, TF32": {},
    "bf16": {"precision": "bf16"},
    "bf16, compile": {"precision": "bf16", "compile": True},
    "fp16": {"precision": "fp16"},
    "fp32": {"tf32": False},
    "fp32, TF32, not channels_last": {"channels_last": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset")
    arguments = parser.parse_args()
    faults.end_on_sigterm()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="ghm-speed-") as folder:
        place = Path(folder)
        faults.prepare(place / "base", arguments.preset, processes=1, images=None if arguments.preset else IMAGES)
        with faults.Trainer() as trainer:
            for name in SETTINGS:
                rows.append(measured(trainer, place, name))
                record = {**context("cuda" if torch.cuda.is_available() else "cpu"), "rows": rows}
                files.write_json(arguments.out / "training_speed.json", record)
                table = pd.DataFrame(rows).to_markdown(index=False)
                (arguments.out / "training_speed.md").write_text(f"{table}\n", encoding="utf-8")
    print((arguments.out / "training_speed.md").read_text(encoding="utf-8"))


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
