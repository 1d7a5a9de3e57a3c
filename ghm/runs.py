"""Training runs: their folders, files, columns and record, and where they are kept, found again and deleted.

A result lies in `.state/<variant>-seed_<n>-<fingerprint>/result/` until somebody deletes it, and in DVC's cache under
the name that `dvc.lock` has for it. So a seed is trained once, also in DVC's experiments and in a clone that shares the
cache. Unfinished runs are in `.state` alone.
"""

import json
import logging
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from ghm import files

# A folder of a run, `run_folder`, holds:
MODEL = "model.pth"
CONFIG = "config.py"  # mmdet's
RECORD = "context.json"  # `Record`
LOG = "log.csv"  # means over the steps since the row before
VALIDATION = "validation.csv"  # AP so far
GRADIENT_NORMS = "gradient_norms.csv"  # histograms
DENSITY = "density.csv"  # GHM's moving averages
COLUMNS = {
    LOG: ("step", "epoch", "loss", "loss_cls", "loss_bbox", "lr", "grad_norm", "positives"),
    VALIDATION: ("epoch", "AP"),
    GRADIENT_NORMS: ("epoch", "kind", "low", "high", "count"),
    DENSITY: ("step", "kind", "low", "high", "density"),
}
# A folder of what it detected, `detections_folder`, holds:
DETECTIONS = "detections.json"  # COCO results
METRICS = "metrics.json"
OUTCOME = "outcome.json"  # at the operating point, `evaluation.outcome.measure`
MATCHES = "matches.npz"  # which detection hits which box, `evaluation.matches.read`
RESAMPLED = "resampled.npz"  # `evaluation.bootstrap.Resampled`

RESULT = "result"  # folder in that of a finished run
AGAIN = "GHM_RETRAIN"  # in the environment: finished runs are trained once more
_log = logging.getLogger(__name__)


def run_folder(variant: str, seed: int, root: Path = Path()) -> Path:
    """What the stage `train` leaves of a seed: `runs/<variant>/seed_<n>`."""
    return root / "runs" / variant / f"seed_{seed}"


def detections_folder(variant: str, seed: int, root: Path = Path()) -> Path:
    """What the stage `evaluate` leaves of a seed: `detections/<variant>/seed_<n>`."""
    return root / "detections" / variant / f"seed_{seed}"


@dataclass(frozen=True)
class Record:
    """What is known of a finished run, as it was when it was trained: the content of `context.json`."""

    revision: str  # commit of the code; "-dirty" where files differed from it
    device: str
    versions: dict[str, str]  # of Python and the libraries
    dataset: str
    variant: str
    seed: int
    epochs: int
    images: int  # of the training split
    category_ids: list[int]  # of the data set, in the order of the classes
    parameters: int  # numbers in the state dictionary
    pretrained: str | None
    load_from: str | None
    fingerprint: str  # `fingerprint.key`
    conditions: dict[str, str]  # `fingerprint.conditions`
    seconds: float  # of training
    processes: int
    unreadable_images: int  # that were left out

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record in a folder of a run; keys that this version does not know are left out.

        Raises:
            OSError: there is none.
            TypeError: a key is missing.
        """
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in known})

    def write(self, folder: Path) -> None:
        """Write it into a folder of a run."""
        files.write_json(folder / RECORD, asdict(self))


def state_folder() -> Path:
    """The folder of unfinished and finished runs: $GHM_STATE, or `.state` of the repository.

    DVC deletes the workspaces of its experiments, so these use that of the repository that started them.
    """
    named = os.environ.get("GHM_STATE")
    if named:
        return Path(named).expanduser()
    parent = Path(os.environ.get("DVC_ROOT", ""))
    return Path(".state") if parent.resolve() == Path.cwd() else parent / ".state"


def take_from_dvc(out: Path, seed: int, key: str, target: Path) -> bool:
    """Fill the folder `target` with a seed of this fingerprint, from the version of `out` that dvc.lock names.

    DVC deletes `out` before it runs the stage; its cache, or the remote, still has it. Returns False where not.
    """
    if not Path("dvc.lock").is_file():
        return False
    try:
        # What DVC imports puts other streams in their place, after which each line of the log would come twice.
        with redirect_stdout(sys.stdout), redirect_stderr(sys.stderr):
            from dvc.api import DVCFileSystem
            from dvc.exceptions import DvcException
            from dvc_data.index import DataIndexError
    except ImportError:  # stages run without DVC, too
        return False
    source = f"{out.as_posix()}/seed_{seed}"
    try:
        earlier = DVCFileSystem()
        if json.loads(earlier.read_text(f"{source}/{RECORD}")).get("fingerprint") != key:
            return False
        with files.whole_folder(target) as folder:
            for path in earlier.find(source):
                earlier.get_file(path, str(folder / Path(path).name))
    except (OSError, ValueError, DvcException, DataIndexError) as error:
        _log.debug("no earlier result of %s: %s", source, error)
        return False
    return True


def lock(folder: Path) -> Path:
    """The file by which a process has a run in `.state` for itself."""
    return folder.with_name(f".{folder.name}.lock")
