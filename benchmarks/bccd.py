"""The preset `bccd_r18` through all stages, on real images: what README's table of BCCD is made from.

    python -m benchmarks.bccd                        # fetches the data set, 10 MB, where it is missing
    python -m benchmarks.bccd --root FOLDER          # the folder that holds BCCD/, as `data.root`

Runs `dvc repro` in a copy of this repository, in a temporary folder that is kept, and writes
`benchmarks/results/bccd.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.scale import ROOT, copy_repository, set_params

RESULT = ROOT / "benchmarks" / "results" / "bccd.json"
SHOWN = ("AP", "AP50", "AP75", "AP_RBC", "AP_WBC", "AP_Platelets")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="an existing copy, as data.root")
    arguments = parser.parse_args()
    clone = Path(tempfile.mkdtemp(prefix="ghm-bccd-"))
    print(f"running in {clone}")
    copy_repository(clone)
    set_params(clone, "bccd_r18", {"root": str(Path(arguments.root).absolute()) if arguments.root else None})
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["dvc", "repro"], cwd=clone, env=environment, check=True)
    rows = [row(clone, path.stem) for path in sorted((clone / "metrics").glob("*.json"))]
    context = json.loads((clone / "runs" / rows[0]["variant"] / "seed_0" / "context.json").read_text())
    record = {"device": context["device"], "versions": context["versions"], "rows": rows}
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(pd.DataFrame(rows).to_markdown(index=False))


def row(clone: Path, variant: str) -> dict[str, Any]:
    """What the reported split says of a variant, and how long its training took."""
    metrics = json.loads((clone / "detections" / variant / "metrics.json").read_text())
    metrics |= {f"AP_{name}": ap for name, ap in metrics["classes"].items()}
    context = json.loads((clone / "runs" / variant / "seed_0" / "context.json").read_text())
    return {"variant": variant, **{key: metrics[key] for key in SHOWN}, "minutes": round(context["seconds"] / 60, 1)}


if __name__ == "__main__":
    main()
