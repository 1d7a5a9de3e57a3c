"""AP of the default, trained on the device at hand, beside the AP that is committed.

    python -m benchmarks.default_ap --out DIR [--preset tiny]

Makes the data set, trains backbone and detectors and measures them as the stages do, in a folder of its own, for the
baseline and for both GHM losses: side by side, on a GPU in turn, where both would only wait for each other. Writes
`default_ap.md` after each. The interval is about other images: another training run differs too.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import faults
from benchmarks.losses import context
from ghm import backbones, data, params, presets, training
from ghm.evaluation.run import evaluate

ROOT = Path(__file__).parents[1]
VARIANTS = ("fl_sl1", "ghmc_ghmr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", help="for a quick run, whose AP means nothing")
    arguments = parser.parse_args()
    out, start = arguments.out.resolve(), time.monotonic()
    faults.end_on_sigterm()
    out.mkdir(parents=True, exist_ok=True)
    device = context("cuda" if torch.cuda.is_available() else "cpu")
    lines = [f"{device['device']}, torch {torch.__version__}; preset: {arguments.preset or 'none'}", ""]
    lines += ["| variant | AP here | 95 % interval | AP committed | seconds so far |", "|---|---:|---:|---:|---:|"]
    with tempfile.TemporaryDirectory(prefix="ghm-ap-") as folder:
        shutil.copy(ROOT / "params.yaml", folder)
        (Path(folder) / "presets").symlink_to(ROOT / "presets")
        os.chdir(folder)
        if arguments.preset:
            presets.apply(arguments.preset)
        # They import while this one prepares.
        with multiprocessing.get_context("spawn").Pool(1 if torch.cuda.is_available() else len(VARIANTS)) as pool:
            data.prepare(params.load())
            backbones.prepare(params.load())
            for variant, found in pool.imap_unordered(measured, VARIANTS):
                committed = json.loads((ROOT / "metrics" / f"{variant}.json").read_text(encoding="utf-8"))
                interval = " to ".join(map(str, found["intervals"].get("AP", "-")))
                seconds = round(time.monotonic() - start)
                lines.append(f"| {variant} | {found['AP']} | {interval} | {committed['AP']} | {seconds} |")
                (out / "default_ap.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.chdir(out)


def measured(variant: str) -> tuple[str, dict[str, Any]]:
    """The variant, trained and evaluated in the current folder, and its metrics."""
    parameters, run = params.load(), Path("runs") / variant
    training.train(parameters, variant, run)
    return variant, evaluate(parameters, variant, run, Path("detections") / variant)


if __name__ == "__main__":
    main()
