"""Train one variant once per seed, and keep what came of it.

State to go on from lies in `.state/<variant>-seed_<n>-<fingerprint>/`, outside what DVC deletes before it runs a stage.
The fingerprint covers everything that shapes the weights: a changed parameter, data set, backbone or training code
starts afresh.
"""

import copy
import ctypes
import logging
import os
import platform
import shutil
import subprocess
import sys
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from tqdm.contrib.logging import logging_redirect_tqdm

from ghm import backbones, checkpoints, config, data, files, fingerprint, runs
from ghm.errors import InputError
from ghm.params import Params
from ghm.runs import Record
from ghm.training import batches, cost, gradient_norms, guards, state
from ghm.training.cost import Rest
from ghm.training.engine import Engine
from ghm.training.loop import Loop
from ghm.training.processes import Processes
from ghm.training.progress import Progress
from ghm.training.validation import ValidationSample
from ghm.words import count

LOG_INTERVAL = 50  # steps
# Of glibc's malloc.h: M_MMAP_THRESHOLD, the most that it takes, M_TRIM_THRESHOLD and M_TOP_PAD, in bytes.
_MALLOC = {-3: 32 << 20, -1: 512 << 20, -2: 64 << 20}
_log = logging.getLogger(__name__)


def train(parameters: Params, variant: str, out: Path, processes: Processes | None = None) -> None:
    """Train `variant` once per seed and write `out/seed_<n>/`, as `runs.run_folder` describes it.

    A seed that was trained under the same conditions before is not trained again; one that was stopped goes on.

    Args:
        processes: those that share the run; all of them call this, the first one writes.

    Raises:
        InputError: a parameter does not fit, the data set or a checkpoint is not there, the data changed meanwhile, a
            loss is not finite, or there is no room.
        SystemExit: the process was told to stop by SIGTERM or SIGINT, and has saved where it was.
    """
    processes = processes or Processes()
    parameters.variant(variant)
    _keep_memory()
    if processes.first:
        data.ensure(parameters)
    processes.wait()
    with files.room_for(out):
        results = [_trained(parameters, variant, seed, out, processes) for seed in parameters.seeds]
        if processes.first:
            with files.whole_folder(out) as folder:
                for seed, result in zip(parameters.seeds, results, strict=True):
                    shutil.copytree(result, folder / runs.run_folder(variant, seed).name)


def _keep_memory() -> None:
    """Have the C library keep what a step has used, which it would give back and get anew at each step."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is not None and hasattr(library, "mallopt"):  # glibc
        for option, value in _MALLOC.items():
            library.mallopt(option, value)


def context() -> dict[str, Any]:
    """Where and with what this process runs: git revision, device, library versions."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    versions = {"python": platform.python_version(), **fingerprint.libraries()}
    return {"revision": _revision(), "device": device, "versions": versions}


def _revision() -> str:
    """The commit of the code and the parameters; what a run itself changes does not count as a change."""

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()
        except OSError:  # no git: the fingerprint tells what was run
            return ""

    changed = git("status", "--porcelain", "--", "params.yaml", "dvc.yaml", "ghm", "stages")
    return f"{git('rev-parse', '--short', 'HEAD') or 'unknown'}{'-dirty' if changed else ''}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {count(torch.get_num_threads(), 'thread')}"


@dataclass(frozen=True)
class _Run:
    """A variant with a seed, on its way."""

    parameters: Params
    variant: str
    seed: int
    cfg: Config
    parts: dict[str, Any]  # of its fingerprint
    folder: Path  # in `.state`
    resume_from: Path | None
    processes: Processes


def _trained(parameters: Params, variant: str, seed: int, out: Path, processes: Processes) -> Path:
    """The folder with the result of a seed, which is trained where that has not been done."""
    run = _described(parameters, variant, seed, processes)
    folder, key = run.folder, fingerprint.key(run.parts)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(runs.lock(folder), f"the training run {folder.name}") if processes.first else nullcontext():
        most = parameters.data.max_bad_images
        if processes.share(processes.first and _is_finished(folder, out, seed, key, most)):
            _log.info(
                "%s, seed %d: already trained under these conditions (%s); to train it again: "
                "%s=1 dvc repro -f train@%s",
                *(variant, seed, folder, runs.AGAIN, variant),
            )
        else:
            if processes.first and not folder.exists():
                before = fingerprint.latest(folder.parent, f"{variant}-seed_{seed}-")
                if before:
                    changes = fingerprint.difference(before, run.parts)
                    _log.info("training starts afresh, for since the last run of this name %s", changes)
                files.write_json(folder / fingerprint.FILE, run.parts)
            with guards.enough_memory(parameters):
                _fit(run)
    return folder / runs.RESULT


def _described(parameters: Params, variant: str, seed: int, processes: Processes) -> _Run:
    """A variant with a seed, before anything of it is done."""
    cfg = config.for_run(parameters, variant, seed)
    # Not in `for_run`: an evaluation loads what was trained.
    detector = backbones.detector_path(parameters)
    cfg.load_from = str(detector) if detector else None
    named = parameters.train.resume_from
    resume_from = Path(named).expanduser() if named else None
    if resume_from and not resume_from.is_file():
        raise InputError(f"train.resume_from must be null or an existing checkpoint, got {named!r}")
    manifest, backbone = data.read_manifest(parameters), backbones.read_record(parameters)
    parts = fingerprint.fingerprint(cfg, manifest, backbone, resume_from)
    folder = runs.state_folder() / f"{variant}-seed_{seed}-{fingerprint.key(parts)}"
    return _Run(parameters, variant, seed, cfg, parts, folder, resume_from, processes)


def _rest(run: _Run) -> Rest:
    """What is to be done after a run: the runs without a result of today's fingerprint, and what was not evaluated."""
    parameters = run.parameters
    others = [
        _described(parameters, variant, seed, run.processes)
        for variant in parameters.variants
        for seed in parameters.seeds
        if (variant, seed) != (run.variant, run.seed)
    ]
    finished, evaluated = (sum(column) for column in zip((False, False), *map(_done, others), strict=True))
    splits = data.read_manifest(parameters)["splits"]
    # On the validation split the evaluation chooses the score from which on detections are shown.
    images = sum(splits[name]["images"] for name in {parameters.evaluate.split, "val"} & splits.keys())
    place, trainings = f"{finished + 1} of {len(others) + 1}", len(others) - finished
    return Rest(place, trainings, 1 + len(others) - evaluated, len(parameters.variants), images)


def _done(run: _Run) -> tuple[bool, bool]:
    """Whether a run has a result, and whether that has been evaluated, as far as can be seen without DVC."""
    result, found = runs.run_folder(run.variant, run.seed), runs.detections_folder(run.variant, run.seed)
    try:
        is_out = Record.read(result).fingerprint == fingerprint.key(run.parts)
    except (OSError, TypeError):
        is_out = False
    is_evaluated = is_out and found.exists() and found.stat().st_mtime > result.stat().st_mtime
    return is_out or (run.folder / runs.RESULT).exists(), is_evaluated


def _is_finished(folder: Path, out: Path, seed: int, key: str, max_bad_images: int) -> bool:
    """Whether the result is there, in `.state` or from DVC, and left out no more images than it may."""
    result = folder / runs.RESULT
    if os.environ.get(runs.AGAIN, "") not in ("", "0"):
        if result.exists():
            shutil.rmtree(folder)
        return False
    there = result.exists() if folder.exists() else runs.take_from_dvc(out, seed, key, result)
    return there and Record.read(result).unreadable_images <= max_bad_images


def _fit(run: _Run) -> None:
    """Train, from the newest checkpoint in the folder where there is one, and leave the result there."""
    train, processes = run.parameters.train, run.processes
    if train.batch_size % (processes.world_size * train.accumulate):
        parts = f" times train.accumulate, {train.accumulate}" if train.accumulate > 1 else ""
        of = f"the {processes.world_size} processes{parts}"
        raise InputError(f"train.batch_size must be a multiple of {of}, got {train.batch_size}")
    start = state.newest(run.folder) if processes.first else None
    if processes.first and start is None and run.resume_from is not None:
        start = run.resume_from, state.read(run.resume_from)
    if start:
        _log.info("going on from %s, after step %d", start[0], start[1]["meta"]["step"])
    start = processes.share(start)
    engine = Engine(run.cfg, processes, begins=start is None)
    progress = None
    if processes.first:
        manifest, rest = data.read_manifest(run.parameters), _rest(run)
        splits, steps = manifest["splits"], config.steps(train, manifest)
        name = f"{run.variant}, seed {run.seed} ({rest.place})"
        _log.info(
            "%s: %s, %s of %s with %s each, learning rate %g, %s",
            *(name, count(splits["train"]["images"], "training image"), count(train.epochs, "epoch")),
            *(count(steps, "step"), count(train.batch_size, "image"), train.learning_rate),
            cost.require_disk(engine, run.parameters, rest, run.folder),
        )
        progress = Progress(
            run.folder,
            name=name,
            epochs=train.epochs,
            steps=steps,
            interval=min(LOG_INTERVAL, steps),
            batch_size=train.batch_size,
            rest=rest,
            watched=gradient_norms.IMAGES + min(train.val_images, splits[run.parameters.splits()[0]]["images"]),
        )
    measure_ap = ValidationSample(run.cfg) if train.val_images else None
    loader, of_run = batches.loader(run.cfg, processes), (run.parameters, run.variant, run.folder, processes)
    loop = Loop(engine, loader, *of_run, progress=progress, measure_ap=measure_ap)
    with logging_redirect_tqdm(), closing(progress) if progress else nullcontext():
        loop.run(start)
    if progress:
        seconds = progress.seconds
        data.ensure(run.parameters)  # what was learned from is what the manifest describes, to the last step
        _write_result(run, loop, progress, seconds)
    processes.wait()


def _write_result(run: _Run, loop: Loop, progress: Progress, seconds: float) -> None:
    """Keep what the outs are made of. With a moving average of the weights, that is the model."""
    parameters, manifest = run.parameters, data.read_manifest(run.parameters)
    record = Record(
        **context(),
        dataset=parameters.data.name,
        variant=run.variant,
        seed=run.seed,
        epochs=parameters.train.epochs,
        images=manifest["splits"]["train"]["images"],
        category_ids=manifest["category_ids"],
        parameters=sum(tensor.numel() for tensor in loop.engine.detector.state_dict().values()),
        pretrained=parameters.model.pretrained,
        load_from=parameters.model.load_from,
        fingerprint=fingerprint.key(run.parts),
        conditions=fingerprint.conditions(run.parts),
        seconds=round(seconds, 1),
        processes=run.processes.world_size,
        unreadable_images=loop.left_out,
    )
    described = {"classes": list(manifest["classes"]), "category_ids": record.category_ids}
    content = {
        "state_dict": {name: value.cpu() for name, value in loop.engine.result.state_dict().items()},
        "meta": {"dataset_meta": described},
    }
    # An out is the same on every machine.
    cfg = copy.deepcopy(run.cfg)
    cfg.train_dataloader.num_workers = cfg.test_dataloader.num_workers = 0
    with files.whole_folder(run.folder / runs.RESULT) as result:
        checkpoints.write(content, result / runs.MODEL)
        progress.write(result)
        cfg.dump(str(result / runs.CONFIG))
        record.write(result)
