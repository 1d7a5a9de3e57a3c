"""The fingerprint of a training run: all that shapes its weights, its checksum, and what differs between two.

This is the one list of it: `dvc.yaml` names the same files and parameters, which a test holds it to.
"""

import hashlib
import io
import json
import re
import reprlib
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghm import files, losses

if TYPE_CHECKING:
    from mmengine.config import Config

FILE = "fingerprint.json"
PACKAGES = ("torch", "torchvision", "mmdet", "mmengine", "mmcv-lite", "numpy", "opencv-python", "pycocotools")
# Files of the package `ghm` that every trained weight depends on; those of a variant's own losses come to them.
SOURCES = (
    "checkpoints.py",
    "config.py",
    "data/images.py",
    "head.py",
    "mmcv_ops.py",
    "norms.py",
    "targets.py",
    "training/batches.py",
    "training/engine.py",
    "training/loop.py",
    "training/randomness.py",
    "training/samples.py",
)
PARAMETERS = ("model", "train")  # that shape a weight beside a variant's own losses and the seed
HOME = Path(__file__).parent
C_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
IDLE = (tokenize.COMMENT, tokenize.NL)


def fingerprint(
    cfg: "Config", manifest: dict[str, Any], backbone: dict[str, Any], resume_from: Path | None
) -> dict[str, Any]:
    """Config, data, backbone, checkpoint to go on from, code and libraries, in plain containers.

    Left out is what can change without changing a bit of the weights: the test half, AP on the validation split, and
    the worker processes.
    """
    config = json.loads(json.dumps(cfg.to_dict(), default=str))
    config = {name: value for name, value in config.items() if not name.startswith("test_") and name != "validation"}
    loader, model = config["train_dataloader"], config["model"]
    del model["test_cfg"], loader["num_workers"]
    used = [loss_sources(model["bbox_head"][name]["type"]) for name in ("loss_cls", "loss_bbox")]
    return {
        "config": config,
        "data": training_data(manifest),
        "backbone": backbone,
        "resume_from": files.digest(resume_from) if resume_from else None,
        "code": checksums({*SOURCES, *used[0], *used[1]}),
        "libraries": libraries(),
    }


def training_data(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a training learns from: classes, and checksums of annotations and images."""
    train = manifest["splits"]["train"]
    return {"classes": manifest["classes"], **{key: train[key] for key in ("annotations_sha256", "files_sha256")}}


def measured_data(split: dict[str, Any]) -> str:
    """What a detector is measured on: annotations and images of a split, as a manifest describes it."""
    return f"{split['annotations_sha256'][:16]}-{split['files_sha256'][:16]}"


def data_checksum(manifest: dict[str, Any]) -> str:
    """`conditions["data"]` of a run on the data that a manifest describes."""
    return key({"data": training_data(manifest)})


def checksums(names: Iterable[str]) -> dict[str, str]:
    """File of the package `ghm` -> checksum of what it does."""
    texts = {name: essence((HOME / name).read_text(encoding="utf-8"), Path(name).suffix) for name in sorted(names)}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def libraries() -> dict[str, str]:
    """Library -> its version."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # OpenCV has two, with and without windows
        return version(f"{package}-headless")


def loss_sources(loss: str) -> set[str]:
    """The files of the package that a type of loss may run through: of ours, its own file and what losses share."""
    if not loss.startswith("ghm."):
        return set()
    modules = {name: getattr(losses, name).__module__.rpartition(".")[2] for name in losses.__all__}
    others = {module for name, module in modules.items() if name != loss.removeprefix("ghm.")}
    left_out = others | {"__init__", "checks"}
    files = [path for path in (HOME / "losses").iterdir() if path.suffix in (".c", ".py")]
    return {f"losses/{path.name}" for path in files if path.stem not in left_out}


@cache
def essence(source: str, suffix: str = ".py") -> str:
    """What a program does: its tokens without comments, docstrings and empty lines."""
    if suffix == ".c":
        return " ".join(C_COMMENT.sub(" ", source).split())
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type not in IDLE]
    kept, is_new = [], True  # at the beginning of a statement
    for token, following in pairwise(tokens):
        if not (is_new and token.type == tokenize.STRING and following.type == tokenize.NEWLINE):
            kept.append((token.type, token.string))
        is_new = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    return repr(kept)


def key(parts: dict[str, Any]) -> str:
    """A checksum of 12 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def conditions(parts: dict[str, Any]) -> dict[str, str]:
    """Checksums of all but the losses and the seed: what two runs have in common that are to be compared.

    Returns:
        `config`, `data`, `backbone`, `resume_from`, `code` and `libraries`, 12 hex digits each.
    """
    shared = json.loads(json.dumps(parts))
    config = shared["config"]
    for name in ("loss_cls", "loss_bbox", "reg_decoded_bbox"):
        del config["model"]["bbox_head"][name]
    del config["randomness"], config["train_dataloader"]["dataset"]["seed"]
    shared["code"] = {name: checksum for name, checksum in shared["code"].items() if name in SOURCES}
    return {name: key({name: part}) for name, part in shared.items()}


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What of a fingerprint has changed, the first three in words."""
    changes = [*_changes(before, after)]
    return ", ".join(changes[:3]) + f" and {len(changes) - 3} more" * (len(changes) > 3)


def _changes(before: Any, after: Any, name: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before | after:
            yield from _changes(before.get(key, "absent"), after.get(key, "absent"), f"{name}.{key}".lstrip("."))
    elif before != after:
        section, _, rest = name.partition(".")
        values = f" was {reprlib.repr(before)} and is {reprlib.repr(after)}"
        yield f"ghm/{rest} changed" if section == "code" else f"{rest or name}{values}"


def latest(folder: Path, prefix: str) -> dict[str, Any] | None:
    """The fingerprint of the youngest run below `folder` whose name begins with `prefix`; None without one."""
    paths = list(folder.glob(f"{prefix}*/{FILE}"))
    if not paths:
        return None
    return json.loads(max(paths, key=lambda path: path.stat().st_mtime).read_text(encoding="utf-8"))
