"""AP of the default, trained on the device at hand and killed on its way, beside the AP that is committed.

    python -m benchmarks.default_ap --out DIR [--preset tiny]

Makes the data set and trains backbone and detector as the stages do, in a folder of its own, with both GHM losses. The
training is killed by SIGKILL seconds after it began, and goes on from its last checkpoint. Writes `default_ap.md`. The
interval is about other images: another training run differs too, and on a GPU so do two of the same seed.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import faults
from benchmarks.losses import context
from ghm import backbones, data, params, presets
from ghm.evaluation.run import evaluate

ROOT = Path(__file__).parents[1]
VARIANT = faults.VARIANT
KILLED_AFTER = 15.0  # seconds
CHECKPOINT_MINUTES = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", help="for a quick run, whose AP means nothing")
    arguments = parser.parse_args()
    out, start = arguments.out.resolve(), time.monotonic()
    faults.end_on_sigterm()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ghm-ap-") as name, faults.Trainer() as trainer:
        folder = Path(name)
        shutil.copy(ROOT / "params.yaml", folder)
        (folder / "presets").symlink_to(ROOT / "presets")
        os.chdir(folder)
        if arguments.preset:
            presets.apply(arguments.preset)
        presets.merge({"machine": {"checkpoint_minutes": CHECKPOINT_MINUTES}}, "this benchmark")
        data.prepare(params.load())
        backbones.prepare(params.load())
        trainer.run(folder, signal.SIGKILL, 0.0 if arguments.preset else KILLED_AFTER, at_write=True)
        trainer.finish(folder)
        went_on = "going on from" in (folder / "log.txt").read_text(encoding="utf-8")
        found = evaluate(params.load(), VARIANT, Path("runs") / VARIANT, Path("detections") / VARIANT)
        os.chdir(out)
    committed = json.loads((ROOT / "metrics" / f"{VARIANT}.json").read_text(encoding="utf-8"))
    device = context("cuda" if torch.cuda.is_available() else "cpu")
    interval = " to ".join(map(str, found["intervals"].get("AP", "-")))
    cells = [VARIANT, found["AP"], interval, committed["AP"]]
    cells += ["yes" if went_on else "no", round(time.monotonic() - start)]
    lines = [f"{device['device']}, torch {torch.__version__}; preset: {arguments.preset or 'none'}", ""]
    lines += ["| variant | AP here | 95 % interval | AP committed | killed and went on | seconds in all |"]
    lines += ["|---|---:|---:|---:|---|---:|", f"| {' | '.join(map(str, cells))} |"]
    (out / "default_ap.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(not (went_on or arguments.preset))  # one that is quick may be killed before its first checkpoint


if __name__ == "__main__":
    main()
