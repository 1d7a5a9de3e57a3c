"""Train one variant once per seed, and keep what came of it.

State to go on from lies in `.state/<variant>-seed_<n>-<key>/`, outside what DVC deletes before it runs a stage. The key
covers everything that shapes the weights: a changed parameter, data set, backbone or training code starts afresh.
"""

import copy
import logging
import platform
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from tqdm.contrib.logging import logging_redirect_tqdm

from ghm import backbones, checkpoints, config, data, files, fingerprint, runs
from ghm.errors import InputError
from ghm.params import Params, Train
from ghm.runs import RECORD, RESULT
from ghm.training import engine, guards, state
from ghm.training.loop import TrainLoop
from ghm.training.processes import Processes
from ghm.training.progress import Progress
from ghm.training.samples import BadImages
from ghm.training.validation import ValidationSample
from ghm.words import count

LOG_INTERVAL = 50  # steps
LOGS = "mmengine"  # what the Runner writes; nobody reads it
MODEL = "model.pth"
_log = logging.getLogger(__name__)


def train(params: Params, variant: str, out: Path, processes: Processes | None = None) -> None:
    """Train `variant` once per seed and write `out/seed_<n>/`: model.pth, config.py, context.json, and tables: log.csv,
    validation.csv, gradient_norms.csv, density.csv.

    A seed that was trained under the same conditions before is not trained again; one that was stopped goes on.

    Args:
        processes: those that share the training; all of them call this, the first one writes.

    Raises:
        InputError: a parameter does not fit, the data set or a checkpoint is not there, the data changed meanwhile, a
            loss is not finite, or there is no room.
        SystemExit: the process was told to stop by SIGTERM or SIGINT, and has saved where it was.
    """
    processes = processes or Processes()
    params.variant(variant)
    if processes.first:
        data.ensure(params)
    processes.wait()
    with files.room_for(out):
        found = [_trained(params, variant, seed, out, processes) for seed in params.seeds]
        if processes.first:
            with files.whole_folder(out) as folder:
                for seed, result in zip(params.seeds, found, strict=True):
                    _require_few_bad(params, result, f"{variant}, seed {seed}")
                    shutil.copytree(result, folder / f"seed_{seed}")


def build_config(params: Params, variant: str, seed: int) -> Config:
    """The mmengine config of one training and its evaluation, from what the earlier stages left."""
    return config.build(params, variant, data.read_manifest(params), backbones.weights_path(params), seed)


def context() -> dict[str, Any]:
    """Where and with what this process runs: git revision, device, library versions."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    versions = {"python": platform.python_version(), **fingerprint.libraries()}
    return {"revision": _revision(), "device": device, "versions": versions}


def _revision() -> str:
    """The commit of the code and the parameters; what a run itself changes does not count as a change."""

    def git(*words: str) -> str:
        try:
            return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()
        except OSError:  # no git: the fingerprint tells what was run
            return ""

    changed = git("status", "--porcelain", "--", "params.yaml", "dvc.yaml", "ghm", "stages")
    return f"{git('rev-parse', '--short', 'HEAD') or 'unknown'}{'-dirty' if changed else ''}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {count(torch.get_num_threads(), 'thread')}"


def _trained(params: Params, variant: str, seed: int, out: Path, processes: Processes) -> Path:
    """The folder with the result of a seed, which is trained where that has not been done."""
    cfg = build_config(params, variant, seed)
    # Not in `build_config`: an evaluation loads what was trained.
    start = backbones.detector_path(params)
    cfg.load_from = str(start) if start else None
    resume_from = _resume_from(params.train.resume_from) if params.train.resume_from else None
    parts = fingerprint.fingerprint(cfg, data.read_manifest(params), backbones.read_record(params), resume_from)
    key, name = fingerprint.key(parts), f"{variant}-seed_{seed}-"
    folder = runs.state_folder() / f"{name}{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(runs.lock(folder), f"the training run {folder.name}") if processes.first else nullcontext():
        done = processes.share(_find(folder, out, seed, key) if processes.first else None)
        if done:
            _log.info(
                "%s, seed %d: already trained under these conditions (%s); to train it again: "
                "%s=1 dvc repro -f train@%s",
                *(variant, seed, folder, runs.AGAIN, variant),
            )
        else:
            if processes.first and not folder.exists():
                _begin(folder, parts, name)
            _fit(params, variant, seed, cfg, folder, resume_from, parts, processes)
    return folder / RESULT


def _find(folder: Path, out: Path, seed: int, key: str) -> bool:
    """Whether the result is there, in `.state` or from DVC."""
    if runs.wants_again():
        if (folder / RESULT).exists():
            shutil.rmtree(folder)
        return False
    if folder.exists():
        return (folder / RESULT).exists()
    return runs.take_from_dvc(out, seed, key, folder / RESULT)


def _require_few_bad(params: Params, result: Path, name: str) -> None:
    left_out = runs.read_record(result)["unreadable_images"]
    if left_out > params.data.max_bad_images:
        raise InputError(
            f"{name} was trained without {count(left_out, 'image')} that could not be read, and "
            f"data.max_bad_images is {params.data.max_bad_images}: mend the images, or raise it"
        )


def _begin(folder: Path, parts: dict[str, Any], name: str) -> None:
    """Make the folder of a run that has none, and say what keeps it from going on where another one is."""
    before = fingerprint.latest(folder.parent, name)
    if before:
        _log.info(
            "training starts afresh, for since the last one of this name %s", fingerprint.difference(before, parts)
        )
    files.write_json(folder / fingerprint.FILE, parts)


def _resume_from(value: str) -> Path:
    path = Path(value).expanduser()
    if not path.is_file():
        raise InputError(f"train.resume_from must be null or an existing checkpoint, got {value!r}")
    try:
        state.read(path)
    except InputError as error:
        raise InputError(f"train.resume_from: {error}") from None
    return path


def _fit(
    params: Params,
    variant: str,
    seed: int,
    cfg: Config,
    folder: Path,
    resume_from: Path | None,
    parts: dict[str, Any],
    processes: Processes,
) -> None:
    """Run the training, from the newest checkpoint in `folder` where there is one, and leave `folder/result/`."""
    train, manifest = params.train, data.read_manifest(params)
    if train.batch_size % processes.world_size:
        raise InputError(
            f"train.batch_size must be a multiple of the {processes.world_size} processes, got {train.batch_size}"
        )
    found = _start(folder, resume_from) if processes.first else None
    source, start = processes.share(found) or (folder, None)
    runner = engine.build(train, cfg, folder / LOGS, processes, loads=start is None)
    progress = None
    if processes.first:
        _say_learning_rate(train)
        progress = Progress(
            folder,
            name=f"{variant}, seed {seed}",
            epochs=train.epochs,
            steps=config.steps(train, manifest),
            interval=min(LOG_INTERVAL, config.steps(train, manifest)),
            batch_size=train.batch_size,
            trackers=params.machine.trackers,
        )
    losses = params.variants[variant]
    loop = TrainLoop(
        runner,
        train=train,
        checkpoint_minutes=params.machine.checkpoint_minutes,
        sections={"loss_cls": losses.cls, "loss_bbox": losses.box},
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
        data.ensure(params)  # what was learned from is what the manifest describes, to the last step
        record = _record(params, variant, seed, parts, loop, progress)
        _write_result(runner, loop, progress, cfg, record, folder)
    processes.wait()


def _start(folder: Path, resume_from: Path | None) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from."""
    found = state.newest(folder)
    if found is None and resume_from is not None:
        found = resume_from, state.read(resume_from)
    if found:
        _log.info("going on from %s, after step %d", found[0], found[1]["meta"]["step"])
    return found


def _say_learning_rate(train: Train) -> None:
    rule = "train.base_batch_size is null: as it is"
    if train.base_batch_size:
        rule = f"linear rule: {train.lr:g} for {train.base_batch_size}"
    _log.info("learning rate %g for %s per step (%s)", train.learning_rate, count(train.batch_size, "image"), rule)
    warning = guards.learning_rate_warning(train)
    if warning:
        _log.warning(warning)


def _record(
    params: Params, variant: str, seed: int, parts: dict[str, Any], loop: TrainLoop, progress: Progress
) -> dict[str, Any]:
    """What is worth knowing of a run, as it was when it was trained."""
    manifest = data.read_manifest(params)
    return {
        **context(),
        "dataset": params.data.name,
        "variant": variant,
        "seed": seed,
        "epochs": params.train.epochs,
        "images": manifest["splits"]["train"]["images"],
        "category_ids": manifest["category_ids"],
        "parameters": sum(tensor.numel() for tensor in loop.detector.state_dict().values()),
        "pretrained": params.model.pretrained,
        "load_from": params.model.load_from,
        "fingerprint": fingerprint.key(parts),
        "conditions": fingerprint.conditions(parts),
        "seconds": round(progress.seconds, 1),
        "processes": loop.processes.world_size,
        "unreadable_images": loop.left_out,
    }


def _write_result(
    runner: Runner, loop: TrainLoop, progress: Progress, cfg: Config, record: dict[str, Any], folder: Path
) -> None:
    """Keep what the outs are made of. With a moving average of the weights, that is the model."""
    average = next((hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)), None)
    weights = (average or loop.detector).state_dict()
    dataset: Any = loop.dataloader.dataset
    described = {"classes": list(dataset.metainfo["classes"]), "category_ids": record["category_ids"]}
    content = {
        "state_dict": {name: value.cpu() for name, value in weights.items()},
        "meta": {"dataset_meta": described},
    }
    with files.whole_folder(folder / RESULT) as result:
        checkpoints.write(content, result / MODEL)
        for name, table in progress.tables().items():
            table.to_csv(result / f"{name}.csv", index=False)
        _portable(cfg).dump(str(result / "config.py"))
        files.write_json(result / RECORD, record)
    shutil.rmtree(folder / LOGS, ignore_errors=True)


def _portable(cfg: Config) -> Config:
    """The config without what was chosen for this machine: an out is the same on every other."""
    cfg = copy.deepcopy(cfg)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.num_workers = 0
    cfg.train_dataloader.persistent_workers = False
    return cfg
