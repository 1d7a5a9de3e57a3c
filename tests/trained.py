"""Of the run that the fixture `place` finds in its folder."""

import json
from pathlib import Path

VARIANT = "ghmc_ghmr"
RUN = Path("runs") / VARIANT / "seed_0"


def truth(split: str) -> dict[str, list[dict]]:
    """The annotations of a split of the digits data set in the current folder."""
    return json.loads(Path(f"data/digits/annotations/instances_{split}.json").read_text())
