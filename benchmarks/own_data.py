"""Folders as people have them, through all stages of a fresh copy: what the table of own data in README is made from.

    python -m benchmarks.own_data raccoon=FOLDER bccd=FOLDER carla:voc=FOLDER chess=FOLDER

A name may give the layout after a colon, where a folder has labels in more than one. For each folder the commands are
those of docs/own-data.md: the preset `own_cpu` on the folder, then `dvc repro`, in a copy of this repository in a
temporary folder that is kept. The AP of every variant is compared with that of pycocotools on the labels as they lie in
the folder, which this file reads by itself. Writes `benchmarks/results/own_data.json`, folder by folder.
"""

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.scale import ROOT, copy_repository

RESULT = ROOT / "benchmarks" / "results" / "own_data.json"
SAID = re.compile(r"takes about .*; (\d+(?::\d+)+) are left until all is done")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="NAME[:LAYOUT]=FOLDER")
    parser.add_argument("--preset", default="own_cpu")
    parser.add_argument("--set", help="KEY=VALUE of params.yaml, by `dvc exp run -S` in place of `dvc repro`")
    arguments = parser.parse_args()
    for named in arguments.folders:
        name, folder = named.split("=", 1)
        name, _, layout = name.partition(":")
        record = run(name, Path(folder).absolute(), layout, arguments.preset, arguments.set)
        records = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
        RESULT.write_text(json.dumps({**records, name: record}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(pd.DataFrame(record["rows"]).to_markdown(index=False))


def run(name: str, folder: Path, layout: str, preset: str, changed: str | None) -> dict[str, Any]:
    """All stages on a folder: the times that were said and taken, and AP by two ways."""
    clone = Path(tempfile.mkdtemp(prefix=f"ghm-{name}-"))
    print(f"{name}: running in {clone}")
    copy_repository(clone)
    who = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    for words in (["add", "--all"], [*who, "commit", "--quiet", "--message=copy"]):  # `dvc exp run` wants a commit
        subprocess.run(["git", *words], cwd=clone, check=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GHM_DATA_ROOT": str(clone / "store")}
    options = [layout] if layout else []
    commands = [[sys.executable, "-m", "ghm.presets", preset, str(folder), *options]]
    commands.append(["dvc", "exp", "run", "-S", changed] if changed else ["dvc", "repro"])
    began, said = time.time(), []
    with (clone / "log.txt").open("w", encoding="utf-8") as log:
        for command in commands:
            with subprocess.Popen(
                command, cwd=clone, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process:
                assert process.stdout
                for line in process.stdout:
                    log.write(line)
                    if match := SAID.search(line):  # when, and for how long from then on
                        said.append([time.time() - began, seconds(match[1])])
            if process.returncode:
                raise SystemExit(f"{' '.join(command)} failed, see {clone / 'log.txt'}")
    taken = time.time() - began
    manifest = json.loads((clone / "data" / "custom.json").read_text())
    split = manifest["splits"]["test"]
    root = clone / "data" / "custom"
    truth = original(folder, json.loads((root / split["annotations"]).read_bytes()), manifest["classes"])
    rows, context = [], {}
    for metrics in sorted((clone / "detections").glob("*/metrics.json")):
        variant = metrics.parent.name
        context = json.loads((clone / "runs" / variant / "seed_0" / "context.json").read_text())
        detections = json.loads((metrics.parent / "seed_0" / "detections.json").read_text())
        ap = json.loads(metrics.read_text())["AP"]
        rows.append(
            {"variant": variant, "AP": ap, "AP_original": round(judged(truth, detections), 4),
             "minutes": round(context["seconds"] / 60, 1)}
        )  # fmt: skip
    first = said[0] if said else [0.0, 0.0]
    return {
        "images": {name: part["images"] for name, part in manifest["splits"].items()},
        "set": changed,
        "classes": len(manifest["classes"]),
        "boxes": sum(part["boxes"] for part in manifest["splits"].values()),
        "minutes": round(taken / 60, 1),
        "said_after_minutes": round(first[0] / 60, 1),
        "said_minutes": round(sum(first) / 60, 1),
        "device": context["device"],
        "rows": rows,
    }


def seconds(text: str) -> int:
    """Of `1:02:03` or `02:03`."""
    total = 0
    for part in text.split(":"):
        total = 60 * total + int(part)
    return total


def original(folder: Path, ours: dict[str, Any], classes: list[str]) -> dict[str, Any]:
    """The boxes of the images of a split as the folder's own XML or COCO files have them, under our ids."""
    numbers = {entry["name"]: entry["id"] for entry in ours["categories"]}
    boxes: dict[str, list[tuple[str, list[float]]]] = defaultdict(list)
    for path in folder.rglob("*.xml"):
        for entry in ET.parse(path).getroot().iter("object"):
            x1, y1, x2, y2 = (float(entry.findtext(f"bndbox/{key}") or 0) for key in ("xmin", "ymin", "xmax", "ymax"))
            boxes[path.stem].append((str(entry.findtext("name")).strip(), [x1 - 1, y1 - 1, x2 - x1, y2 - y1]))
    for path in folder.rglob("_annotations.coco.json"):
        content = json.loads(path.read_bytes())
        stems = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
        names = {entry["id"]: entry["name"] for entry in content["categories"]}
        for entry in content["annotations"]:
            boxes[stems[entry["image_id"]]].append((names[entry["category_id"]], entry["bbox"]))
    annotations = [
        {"image_id": image["id"], "category_id": numbers[name], "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for image in ours["images"]
        for name, box in boxes[Path(image["file_name"]).stem]
    ]
    for number, entry in enumerate(annotations, start=1):
        entry["id"] = number
    assert [entry["name"] for entry in ours["categories"]] == classes
    return {"images": ours["images"], "categories": ours["categories"], "annotations": annotations}


def judged(truth: dict[str, Any], detections: list[dict[str, Any]]) -> float:
    """AP of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        known: Any = COCO()
        known.dataset = truth
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


if __name__ == "__main__":
    main()
