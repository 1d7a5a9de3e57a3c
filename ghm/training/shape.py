"""Everything that shapes a training, its checksum, and what differs between two."""

import copy
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ghm import files

FILE = "shape.json"
PACKAGES = ("torch", "torchvision", "mmdet", "mmengine", "mmcv-lite", "numpy", "opencv-python", "pycocotools")
# Files of the package `ghm` that a trained weight depends on.
SOURCES = ("checkpoints.py", "config.py", "head.py", "gradient_norms.py", "mmcv_ops.py", "training", "losses")
SHOWN = 3  # differences in a message


def shape(cfg: Config, manifest: dict[str, Any], backbone: dict[str, Any], resume_from: Path | None) -> dict[str, Any]:
    """Config, data, backbone, checkpoint to go on from, code and libraries, in plain containers.

    Left out is what can change without changing a bit of the weights: the test half, and the worker processes.
    """
    config = json.loads(json.dumps(cfg.to_dict(), default=str))
    config = {name: value for name, value in config.items() if not name.startswith("test_")}
    del config["model"]["test_cfg"]
    for name in ("num_workers", "persistent_workers"):
        del config["train_dataloader"][name]
    return {
        "config": config,
        "data": manifest,
        "backbone": backbone,
        "resume_from": files.digest(resume_from) if resume_from else None,
        "code": code(),
        "libraries": {name: version(name) for name in PACKAGES},
    }


def code() -> dict[str, str]:
    """File of the package `ghm` that a trained weight depends on -> its checksum."""
    here = Path(__file__).parents[1]
    paths = [
        path for name in SOURCES for path in ([here / name] if name.endswith(".py") else (here / name).glob("*.py"))
    ]
    return {str(path.relative_to(here)): files.digest(path) for path in sorted(paths)}


def key(parts: dict[str, Any]) -> str:
    """A checksum of 12 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def conditions(parts: dict[str, Any]) -> dict[str, str]:
    """Checksums of all but the losses and the seed: what two trainings have in common that are to be compared.

    Returns:
        `config`, `data`, `backbone`, `resume_from`, `code` and `libraries`, 12 hex digits each.
    """
    shared = copy.deepcopy(parts)
    config = shared["config"]
    for name in ("loss_cls", "loss_bbox", "reg_decoded_bbox"):
        del config["model"]["bbox_head"][name]
    del config["randomness"], config["train_dataloader"]["dataset"]["seed"]
    return {name: key({name: part}) for name, part in shared.items()}


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What of `before` is otherwise in `after`, the first few in words."""
    old, new = _flat(before), _flat(after)
    changed = [name for name in {**old, **new} if old.get(name, ...) != new.get(name, ...)]
    words = [_words(name, old.get(name, "absent"), new.get(name, "absent")) for name in changed[:SHOWN]]
    return ", ".join(words) + f" and {len(changed) - SHOWN} more" * (len(changed) > SHOWN)


def latest(folder: Path, prefix: str) -> dict[str, Any] | None:
    """The shape of the youngest training below `folder` whose name begins with `prefix`; None without one."""
    paths = list(folder.glob(f"{prefix}*/{FILE}"))
    if not paths:
        return None
    return json.loads(max(paths, key=lambda path: path.stat().st_mtime).read_text(encoding="utf-8"))


def _words(name: str, before: Any, after: Any) -> str:
    section, _, rest = name.partition(".")
    if section == "code":
        return f"ghm/{rest} changed"
    return f"{rest or name} was {_short(before)} and is {_short(after)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Names with dots -> values that are no containers; items of a list by their number."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        return {name: value}
    found: dict[str, Any] = {}
    for inner, item in value.items():
        found |= _flat(item, f"{name}.{inner}" if name else str(inner))
    return found
