"""The fingerprint of a training run: all that shapes its weights, its checksum, and what differs between two.

This is the one list of it: `dvc.yaml` names the same files and parameters, which a test holds it to.
"""

import ast
import hashlib
import io
import json
import tokenize
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
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
    "training/engine.py",
    "training/loop.py",
    "training/randomness.py",
    "training/samples.py",
)
# Run through by a training run, and without effect on a weight: they check, watch, save, show and start.
WITHOUT_EFFECT = (
    "__init__.py",
    "backbones.py",  # its result is in the fingerprint
    "check.py",
    "cli.py",
    "data/",  # likewise, but for how an image is read
    "devices.py",
    "errors.py",
    "files.py",
    "fingerprint.py",
    "losses/__init__.py",
    "params.py",
    "predict.py",  # AP so far
    "pretraining.py",  # likewise
    "registry.py",
    "runs.py",
    "sections.py",
    "training/__init__.py",
    "training/gradient_norms.py",
    "training/guards.py",
    "training/processes.py",
    "training/progress.py",
    "training/run.py",
    "training/state.py",
    "training/validation.py",
    "truth.py",
    "words.py",
)
PARAMETERS = ("model", "train")  # that shape a weight beside a variant's own losses and the seed
SHOWN = 3  # differences in a message
HOME = Path(__file__).parent
_PARSING = Lock()


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
    del model["test_cfg"], loader["num_workers"], loader["persistent_workers"]
    head = model["bbox_head"]
    return {
        "config": config,
        "data": training_data(manifest),
        "backbone": backbone,
        "resume_from": files.digest(resume_from) if resume_from else None,
        "code": code([head["loss_cls"]["type"], head["loss_bbox"]["type"]]),
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


def code(losses: Iterable[str]) -> dict[str, str]:
    """File of the package `ghm` that a weight depends on -> checksum of what it does.

    Args:
        losses: types of losses, as a config names them.
    """
    return checksums({*SOURCES, *(name for loss in losses if loss.startswith("ghm.") for name in loss_sources(loss))})


def checksums(names: Iterable[str]) -> dict[str, str]:
    """File of the package `ghm` -> checksum of what it does."""
    texts = {name: essence((HOME / name).read_text(encoding="utf-8")) for name in sorted(names)}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def libraries() -> dict[str, str]:
    """Library -> its version."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # OpenCV has two, with and without windows
        return version(f"{package}-headless")


@cache
def _tree(source: str) -> ast.Module:
    with _PARSING:  # Python 3.11 counts the depth of what all threads parse together
        return ast.parse(source)


def loss_sources(loss: str) -> set[str]:
    """The files of the package that a loss of ours runs through."""
    paths: set[str] = set()
    modules = [getattr(losses, loss.removeprefix("ghm.")).__module__]
    while modules:
        path = f"{modules.pop().removeprefix('ghm.').replace('.', '/')}.py"
        if path in paths or not (HOME / path).is_file():
            continue
        paths.add(path)
        for node in ast.walk(_tree((HOME / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ghm.losses"):
                modules += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return paths


def essence(source: str) -> str:
    """A program without what cannot change what it does: comments, docstrings, empty lines."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(_tree(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and ast.get_docstring(node) is not None:
                for row in range(first.lineno, (first.end_lineno or first.lineno) + 1):
                    lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


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
    """What of `before` is different in `after`, the first few in words."""
    old, new = _flat(before), _flat(after)
    changed = [name for name in old | new if old.get(name, ...) != new.get(name, ...)]
    sentences = []
    for name in changed[:SHOWN]:
        section, _, rest = name.partition(".")
        values = [json.dumps(values.get(name, "absent")) for values in (old, new)]
        was, now = (value if len(value) <= 40 else f"{value[:37]}..." for value in values)
        sentences.append(f"ghm/{rest} changed" if section == "code" else f"{rest or name} was {was} and is {now}")
    return ", ".join(sentences) + f" and {len(changed) - SHOWN} more" * (len(changed) > SHOWN)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Names with dots -> values that are no containers; items of a list by their number."""
    if isinstance(value, list) and value:
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        return {name: value}
    flat: dict[str, Any] = {}
    for inner, item in value.items():
        flat |= _flat(item, f"{name}.{inner}" if name else str(inner))
    return flat


def latest(folder: Path, prefix: str) -> dict[str, Any] | None:
    """The fingerprint of the youngest run below `folder` whose name begins with `prefix`; None without one."""
    paths = list(folder.glob(f"{prefix}*/{FILE}"))
    if not paths:
        return None
    return json.loads(max(paths, key=lambda path: path.stat().st_mtime).read_text(encoding="utf-8"))
