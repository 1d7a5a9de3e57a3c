"""Train one variant once a seed, and keep what came of it.

State to go on from lies in `.state/<variant>-seed_<n>-<key>/`, outside what DVC deletes before it runs a stage. The key
covers everything that shapes the training: a changed parameter, data set, backbone or training code starts afresh.
"""

import io
import json
import logging
import platform
import shutil
import subprocess
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from tqdm.contrib.logging import logging_redirect_tqdm

from ghm import backbones, checkpoints, config, data, files
from ghm.errors import InputError
from ghm.params import Params, Train
from ghm.training import guards, shape, state
from ghm.training.loop import TrainLoop
from ghm.training.optimizer import set_precision
from ghm.training.processes import Processes
from ghm.training.progress import Progress
from ghm.training.samples import BadImages
from ghm.training.validation import ValidationSample

STATE = Path(".state")
LOG_INTERVAL = 50  # steps
RESULT = "result"  # folder in that of a finished training
LOGS = "mmengine"  # what the Runner writes; nobody reads it
MODEL = "model.pth"
RECORD = "context.json"
_log = logging.getLogger(__name__)


def train(params: Params, variant: str, out: Path, processes: Processes | None = None) -> None:
    """Train `variant` once a seed and write `out/seed_<n>/`: model.pth, config.py, context.json, and tables: log.csv,
    validation.csv, gradient_norms.csv, density.csv.

    A seed that was trained under the same conditions before is not trained again; one that was stopped goes on.

    Args:
        processes: those that share the training; all of them call this, the first one writes.

    Raises:
        InputError: a parameter does not fit, the data set or a checkpoint is not there, a loss is not finite, or there
            is no room.
        SystemExit: the process was told to stop by SIGTERM or SIGINT, and has saved where it was.
    """
    processes = processes or Processes()
    params.variant(variant)
    if processes.first:
        data.ensure(params)
    processes.wait()
    try:
        with files.whole_folder(out) if processes.first else nullcontext(out) as folder:
            for seed in params.seeds:
                _train_seed(params, variant, seed, folder / f"seed_{seed}", processes)
    except OSError as error:
        if state.is_full(error):
            raise InputError(
                f"no room to write {error.filename or out}: make room, and the same command goes on"
            ) from None
        raise


def build_config(params: Params, variant: str, seed: int) -> Config:
    """The mmengine config of one training and its evaluation, from what the earlier stages left."""
    return config.build(params, variant, data.read_manifest(params), backbones.weights_path(params), seed)


def context(params: Params) -> dict[str, Any]:
    """Where and with what this process runs: git revision, device, library versions."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    versions = {"python": platform.python_version(), **{name: version(name) for name in shape.PACKAGES}}
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


def _train_seed(params: Params, variant: str, seed: int, out: Path, processes: Processes) -> None:
    cfg = build_config(params, variant, seed)
    # Not in `build_config`: an evaluation loads what was trained.
    start = backbones.detector_path(params)
    cfg.load_from = str(start) if start else None
    resume_from = _resume_from(params.train.resume_from) if params.train.resume_from else None
    parts = shape.shape(cfg, data.read_manifest(params), backbones.read_record(params), resume_from)
    name = f"{variant}-seed_{seed}-"
    folder = STATE / f"{name}{shape.key(parts)}"
    with files.alone(_lock(folder), f"the training {folder.name}") if processes.first else nullcontext():
        if processes.first and not folder.exists():
            _begin(folder, parts, name)
        if processes.share((folder / RESULT).exists()):
            _log.info("%s, seed %d: already trained under these conditions", variant, seed)
        else:
            _fit(params, cfg, folder, f"{variant}, seed {seed}", resume_from, processes)
        if processes.first:
            _export(params, variant, seed, cfg, folder / RESULT, out, shape.conditions(parts))


def _lock(folder: Path) -> Path:
    folder.parent.mkdir(exist_ok=True)
    return folder.with_name(f".{folder.name}.lock")


def _begin(folder: Path, parts: dict[str, Any], name: str) -> None:
    """Make the folder of a training that has none, and say what keeps it from going on where another one is."""
    before = shape.latest(folder.parent, name)
    if before:
        _log.info("training starts afresh, for since the last one of this name %s", shape.difference(before, parts))
    files.write_json(folder / shape.FILE, parts)


def _resume_from(value: str) -> Path:
    path = Path(value).expanduser()
    if not path.is_file():
        raise InputError(f"train.resume_from must be null or an existing checkpoint, got {value!r}")
    try:
        state.read(path)
    except InputError as error:
        raise InputError(f"train.resume_from: {error}") from None
    return path


class _WholeDetector(Hook):
    """Match the checkpoint of `model.load_from` with the names of the detector before the Runner loads it.

    All that the detector needs must be there, but for what depends on the data set or the losses: the layer that names
    classes, where their number is another, and the counts of GHM's moving averages. These start anew.
    """

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        own = model.state_dict()
        found, report = checkpoints.select(checkpoint.get("state_dict", checkpoint), own)
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
        checkpoint["state_dict"] = {**own, **found}


def _fit(params: Params, cfg: Config, folder: Path, name: str, resume_from: Path | None, processes: Processes) -> None:
    """Run the training, from the newest checkpoint in `folder` where there is one, and leave `folder/result/`."""
    train, manifest = params.train, data.read_manifest(params)
    if train.batch_size % processes.world_size:
        raise InputError(
            f"train.batch_size must be a multiple of the {processes.world_size} processes, got {train.batch_size}"
        )
    found = _start(folder, resume_from) if processes.first else None
    source, start = processes.share(found) or (folder, None)
    runner = _runner(params, cfg, folder, processes, loads=start is None)
    progress = None
    if processes.first:
        _say_learning_rate(train)
        progress = Progress(
            folder,
            name=name,
            epochs=train.epochs,
            steps=config.steps(train, manifest),
            interval=min(LOG_INTERVAL, config.steps(train, manifest)),
            batch_size=train.batch_size,
            trackers=train.trackers,
        )
    loop = TrainLoop(
        runner,
        train=train,
        bad_images=BadImages(params.data.max_bad_images),
        folder=folder,
        processes=processes,
        progress=progress,
        measure_ap=ValidationSample(cfg) if train.val_images else None,
        start=start,
        source=source,
    )
    runner._train_loop = loop  # a config cannot hold what it is made of
    try:
        with logging_redirect_tqdm():
            runner.train()
    finally:
        if progress:
            progress.close()
    if progress:
        _write_result(runner, loop, progress, folder)
    processes.wait()


def _start(folder: Path, resume_from: Path | None) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from."""
    found = state.newest(folder)
    if found is None and resume_from is not None:
        found = resume_from, state.read(resume_from)
    if found:
        _log.info("going on from %s, after step %d", found[0], found[1]["meta"]["step"])
    return found


def _runner(params: Params, cfg: Config, folder: Path, processes: Processes, *, loads: bool) -> Runner:
    """mmengine's Runner with the model on its device, as `train` wants it."""
    train = params.train
    cfg = cfg.copy()
    cfg.work_dir = str(folder / LOGS)
    cfg.experiment_name = folder.name
    cfg.train_dataloader.batch_size = train.batch_size // processes.world_size
    if not loads:
        cfg.load_from = None
        cfg.model.backbone.init_cfg = None
    if processes.world_size > 1:
        cfg.launcher = "pytorch"
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else None
        cfg.model_wrapper_cfg = {
            "type": "MMDistributedDataParallel",
            "device_ids": devices,
            "broadcast_buffers": False,
        }
    set_precision(cfg)
    runner = _Runner.from_cfg(cfg)
    detector: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if train.compile:
        for part in (detector.backbone, detector.neck, detector.bbox_head):
            part.compile()
    if cfg.load_from:
        runner.register_hook(_WholeDetector())
    return runner


class _Runner(Runner):
    """mmengine's, with the layout of the weights settled before processes agree on it."""

    def wrap_model(self, model_wrapper_cfg: Any, model: torch.nn.Module) -> torch.nn.Module:
        if self.cfg.speed.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return super().wrap_model(model_wrapper_cfg, model)


def _say_learning_rate(train: Train) -> None:
    rule = "train.base_batch_size is null: as it is"
    if train.base_batch_size:
        rule = f"linear rule: {train.lr:g} for {train.base_batch_size}"
    _log.info("learning rate %g for %d images a step (%s)", train.learning_rate, train.batch_size, rule)
    warning = guards.learning_rate_warning(train)
    if warning:
        _log.warning(warning)


def _write_result(runner: Runner, loop: TrainLoop, progress: Progress, folder: Path) -> None:
    """Keep what the outs are made of. With a moving average of the weights, that is the model."""
    average = next((hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)), None)
    weights = (average or loop.detector).state_dict()
    dataset: Any = loop.dataloader.dataset
    content = {
        "state_dict": {name: value.cpu() for name, value in weights.items()},
        "meta": {"dataset_meta": {"classes": list(dataset.metainfo["classes"])}},
    }
    with files.whole_folder(folder / RESULT) as result:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        (result / MODEL).write_bytes(buffer.getbuffer())  # an OSError says what is wrong with a disk
        for name, table in progress.tables().items():
            table.to_csv(result / f"{name}.csv", index=False)
        record = {
            "seconds": round(progress.seconds, 1),
            "processes": loop.processes.world_size,
            "unreadable_images": loop.left_out,
        }
        files.write_json(result / RECORD, record)
    shutil.rmtree(folder / LOGS, ignore_errors=True)


def _export(
    params: Params, variant: str, seed: int, cfg: Config, result: Path, out: Path, conditions: dict[str, str]
) -> None:
    out.mkdir()
    for path in result.iterdir():
        shutil.copyfile(path, out / path.name)
    cfg.dump(str(out / "config.py"))
    tensors = torch.load(out / MODEL, weights_only=True)["state_dict"]
    record = {
        **context(params),
        "variant": variant,
        "seed": seed,
        "epochs": params.train.epochs,
        "images": data.read_manifest(params)["splits"]["train"]["images"],
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "pretrained": params.model.pretrained,
        "load_from": params.model.load_from,
        "conditions": conditions,
        **json.loads((out / RECORD).read_text(encoding="utf-8")),
    }
    files.write_json(out / RECORD, record)
