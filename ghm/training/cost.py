"""What a training run will take, and all that `dvc repro` still has to do after it: seconds, memory, disk."""

import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ghm import files
from ghm.params import Params
from ghm.side_by_side import AT_ONCE
from ghm.training import state
from ghm.words import count

# Rough shares, from a few timings on 2 cores: an image to be tested, in times of one to be trained on; metrics of a
# seed and the report on a variant, in times of what a stage needs before it begins.
TESTED, JUDGED, REPORTED = 0.5, 0.3, 0.5
BOX = 120  # bytes in detections.json
COPIES = 3  # of a model: in `.state`, in `runs` and in DVC's cache


def _startup() -> float:
    """Seconds since this process began: what a stage needs to import all that it uses."""
    if sys.platform != "linux":
        return time.process_time()
    began = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - int(began) / os.sysconf("SC_CLK_TCK")
    return min(seconds, 10 * time.process_time())  # for some containers have another idea of when they began


STARTUP = _startup()


@dataclass(frozen=True)
class Rest:
    """What the pipeline still has to do after a training run."""

    place: str  # of the run among all of the parameters, "2 of 4", by how many are finished
    trainings: int
    evaluations: int  # of a seed
    variants: int
    images: int  # that an evaluation tests

    def seconds(self, whole: float, per_image: float) -> float:
        """How long it will take, the variants being alike.

        Args:
            whole: seconds of a training run.
            per_image: seconds that a step takes for each of its images.
        """
        evaluation = STARTUP * (1 + JUDGED) + self.images * per_image * TESTED
        report = STARTUP * (1 + REPORTED * self.variants)
        at_once = int(os.environ.get(AT_ONCE, "1"))
        trainings = max(0, self.trainings - (at_once - 1))  # those beside this run end with it
        return (trainings * (STARTUP + whole) + self.evaluations * evaluation) / at_once + report

    def __str__(self) -> str:
        """What it is, for people."""
        trainings = f"{count(self.trainings, 'more training run')}, " if self.trainings else ""
        return f"{trainings}{count(self.evaluations, 'evaluation')} and the report"


def require_disk(engine: Any, parameters: Params, rest: Rest, folder: Path) -> str:
    """What a run and those after it will write, for people.

    Raises:
        InputError: there is no room for this run's checkpoints and models.
    """
    size = sum(value.numel() * value.element_size() for value in engine.detector.state_dict().values())
    moments = 2 if parameters.train.optimizer == "adamw" else 1
    checkpoint = size * (1 + moments + (engine.average is not None))
    detections = BOX * parameters.evaluate.max_per_image * rest.images
    run = state.KEPT * checkpoint + COPIES * size + 2 * detections
    files.require_space(run + checkpoint, folder, "a training run")  # one is written before another is deleted
    return f"at most {tqdm.format_sizeof(run * (1 + rest.trainings), 'B')} of disk"


def memory() -> str:
    """The most that this process has held so far, for people: of the GPU, or else of the computer."""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        held = torch.cuda.max_memory_reserved()
        return f"{tqdm.format_sizeof(held, 'B', 1024)} of the GPU's {tqdm.format_sizeof(total, 'B', 1024)}"
    unit = 1 if sys.platform == "darwin" else 1024
    return tqdm.format_sizeof(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "B", 1024)
