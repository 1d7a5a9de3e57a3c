"""Train one variant with one seed on mmengine's Runner, and keep what came of it.

State to resume from lies in `.state/<variant>-seed_<n>-<key>/`, outside what DVC deletes before it runs a stage. The
key covers everything that shapes the training: a changed parameter, data set, backbone or training code starts afresh.
"""

import hashlib
import json
import logging
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, find_latest_checkpoint

from ghm import backbones, checkpoints, config, data, files
from ghm.errors import InputError
from ghm.gradient_norms import FILE as GRADIENT_NORMS
from ghm.params import Params, Train

STATE = Path(".state")
PACKAGES = ("torch", "torchvision", "mmdet", "mmengine", "mmcv-lite", "numpy", "pycocotools")
# Files of this package that a trained weight depends on.
_SOURCES = ("checkpoints.py", "config.py", "head.py", "gradient_norms.py", "training.py", "losses")
_log = logging.getLogger(__name__)


def train(params: Params, variant: str, out: Path) -> None:
    """Train `variant` once a seed and write `out/seed_<n>/`: model.pth, config.py, log.csv, gradient_norms.csv,
    context.json.

    A seed that was trained under the same conditions before is not trained again.

    Raises:
        InputError: a parameter does not fit, or the data set or a checkpoint is not there.
    """
    params.variant(variant)
    data.ensure(params)
    with files.whole_folder(out) as folder:
        for seed in params.seeds:
            cfg = build_config(params, variant, seed)
            # Not in `build_config`: an evaluation loads what was trained.
            start = backbones.detector_path(params)
            cfg.load_from = str(start) if start else None
            state = STATE / f"{variant}-seed_{seed}-{_key(params, cfg)}"
            if (state / "model.pth").exists():
                _log.info("%s, seed %d: already trained under these conditions", variant, seed)
            else:
                _fit(params, cfg, state)
            _export(params, variant, seed, cfg, state, folder / f"seed_{seed}")


def build_config(params: Params, variant: str, seed: int) -> Config:
    """The mmengine config of one training and its evaluation, from what the earlier stages left."""
    return config.build(params, variant, data.read_manifest(params), backbones.weights_path(params), seed)


def context(params: Params) -> dict[str, Any]:
    """Where and with what this process runs: git revision, device, library versions."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {
        "revision": _revision(),
        "device": device,
        "versions": versions,
        "dataset": params.data.name,
    }


def _revision() -> str:
    """The commit of the code and the parameters; what a run itself changes does not count as a change."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "params.yaml", "dvc.yaml", "ghm", "stages")
    return f"{git('rev-parse', '--short', 'HEAD') or 'unknown'}{'-dirty' if changed else ''}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def _key(params: Params, cfg: Config) -> str:
    """Hash of all that shapes a training: config, data, backbone, checkpoint to go on from, code, libraries."""
    shape = json.loads(json.dumps(cfg.to_dict(), default=str))
    shape = {name: value for name, value in shape.items() if not name.startswith("test_")}
    del shape["model"]["test_cfg"]
    parts: list[Any] = [shape, data.read_manifest(params), backbones.read_record(params)]
    if params.train.resume_from:
        parts.append(files.digest(_resume_from(params.train.resume_from)))
    here = Path(__file__).parent
    for source in _SOURCES:
        paths = [here / source] if source.endswith(".py") else sorted((here / source).glob("*.py"))
        parts.extend(files.digest(path) for path in paths)
    parts.extend(version(name) for name in PACKAGES)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _resume_from(value: str) -> Path:
    path = Path(value).expanduser()
    if not path.is_file():
        raise InputError(f"train.resume_from must be null or an existing checkpoint, got {value!r}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file may hold, it is not what was asked for
        reason = checkpoints.reason(error)
        raise InputError(f"train.resume_from: {value} is no checkpoint that can be loaded safely: {reason}") from None
    if not isinstance(content, dict) or not {"state_dict", "optimizer", "meta"} <= content.keys():
        raise InputError(f"train.resume_from: {value} holds no state of a training, which `.state/*/epoch_<n>.pth` do")
    return path


class _PlainCheckpoint(Hook):
    """Keep checkpoints to what PyTorch loads without trusting the file: tensors, numbers, texts, containers.

    The windows of smoothed log values are left out; they pickle as calls of `getattr`.
    """

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["message_hub"]["log_scalars"] = {}
        for name in checkpoint.keys() - {"state_dict", "optimizer"}:
            checkpoint[name] = _plain(checkpoint[name])


class _WholeDetector(Hook):
    """Match the checkpoint of `model.load_from` with the names of the detector before the Runner loads it.

    All that the detector needs must be there, but for what depends on the data set or the losses: the layer that names
    classes, where their number is another, and the counts of GHM's moving averages. These start anew.
    """

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        own = model.state_dict()
        state, report = checkpoints.select(checkpoint.get("state_dict", checkpoint), own)
        classes = [name for name in report.other_shape if name.startswith("bbox_head.retina_cls.")]
        losses = ("bbox_head.loss_cls.", "bbox_head.loss_bbox.")
        report.require(
            "model.load_from does not fit the detector that `model` describes",
            spare=lambda name: name in classes or name.startswith(losses),
        )
        _log.info("model.load_from: %s", report)
        if classes:
            names = " and ".join(classes)
            _log.warning("model.load_from has another number of classes: %s begin at random values", names)
        checkpoint["state_dict"] = {**own, **state}


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, in any nest of containers."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return type(value)(map(_plain, value)) if isinstance(value, list | tuple) else value


def _fit(params: Params, cfg: Config, state: Path) -> None:
    """Run the training, from the newest checkpoint in `state` where there is one, and leave `state/model.pth`."""
    state.mkdir(parents=True, exist_ok=True)
    cfg = cfg.copy()
    cfg.work_dir = str(state)
    cfg.experiment_name = state.name
    latest = find_latest_checkpoint(str(state))
    if latest:
        _log.info("going on from %s", latest)
        cfg.resume, cfg.load_from = True, latest
    elif params.train.resume_from:
        cfg.resume, cfg.load_from = True, str(_resume_from(params.train.resume_from))
    _log_learning_rate(params.train)
    runner = Runner.from_cfg(cfg)
    for handler in MMLogger.get_current_instance().handlers:
        handler.setLevel(logging.INFO)  # only now: the Runner's first words are the whole config
    model: Any = runner.model
    model.to(memory_format=torch.channels_last)
    runner.register_hook(_PlainCheckpoint())
    if cfg.load_from and not cfg.resume:
        runner.register_hook(_WholeDetector())
    runner.train()
    content = {
        "state_dict": {name: value.cpu() for name, value in model.state_dict().items()},
        "meta": {"dataset_meta": {"classes": list(cfg.train_dataloader.dataset.metainfo.classes)}},
    }
    temporary = state / ".model.pth"
    torch.save(content, temporary)
    temporary.rename(state / "model.pth")


def _log_learning_rate(train: Train) -> None:
    rule = "train.base_batch_size is null: as it is"
    if train.base_batch_size:
        rule = f"linear rule: {train.lr:g} for {train.base_batch_size}"
    _log.info("learning rate %g for %d images a step (%s)", train.learning_rate, train.batch_size, rule)


def _export(params: Params, variant: str, seed: int, cfg: Config, state: Path, out: Path) -> None:
    out.mkdir()
    shutil.copyfile(state / "model.pth", out / "model.pth")
    shutil.copyfile(state / GRADIENT_NORMS, out / GRADIENT_NORMS)
    cfg.dump(str(out / "config.py"))
    log = _read_log(state)
    log.drop(columns="time").to_csv(out / "log.csv", index=False)
    tensors = torch.load(out / "model.pth", weights_only=True)["state_dict"]
    record = {
        **context(params),
        "variant": variant,
        "seed": seed,
        "epochs": params.train.epochs,
        "images": data.read_manifest(params)["splits"]["train"]["images"],
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "pretrained": params.model.pretrained,
        "load_from": params.model.load_from,
        "seconds": round(float((log["time"] * log["step"].diff().fillna(log["step"])).sum()), 1),
    }
    files.write_json(out / "context.json", record)


def _read_log(state: Path) -> pd.DataFrame:
    """What the Runner logged every few steps: step, epoch, loss, loss_cls, loss_bbox, lr, grad_norm, time [s a step].

    A resumed training leaves one file a start; the later one counts where both have a step.
    """
    paths = sorted(state.glob("*/vis_data/scalars.json"))
    columns = ["step", "epoch", "loss", "loss_cls", "loss_bbox", "lr", "grad_norm", "time"]
    tables = [pd.read_json(path, lines=True) for path in paths if path.stat().st_size]
    if not tables:
        return pd.DataFrame({name: [] for name in columns}, dtype=float)  # of 0 epochs
    log = pd.concat(tables).drop_duplicates("step", keep="last").sort_values("step")
    return log.reindex(columns=columns)
