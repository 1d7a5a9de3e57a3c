"""Whether runs may stand in one table: same data, same code, same training but for the losses and the seed."""

from typing import Any

from ghm.errors import InputError
from ghm.evaluation.bootstrap import Resampled
from ghm.params import Params


def require(
    params: Params,
    contexts: dict[str, list[dict[str, Any]]],
    resampled: dict[str, list[Resampled]],
    annotations: str,
    data: str | None = None,
) -> None:
    """Refuse runs that differ in more than losses and seeds.

    Args:
        contexts: of each variant, seed by seed: what `training.train` recorded.
        resampled: of each variant, seed by seed: with the checksum of the file that it was judged with.
        annotations: the checksum of the reported split's file.
        data: what `conditions.data` is of a run on the data that the manifest describes; None: runs are compared with
            each other only.

    Raises:
        InputError: with the list of runs that do not belong.
    """
    first = next(iter(contexts))
    base = contexts[first][0]
    one = f"{first}, seed {params.seeds[0]}"
    problems = []
    for variant, runs in contexts.items():
        for seed, run, measured in zip(params.seeds, runs, resampled[variant], strict=True):
            name = f"{variant}, seed {seed}"
            if run["dataset"] != params.data.name:
                problems.append(f"{name} was trained on {run['dataset']}, and the report is on {params.data.name}")
            elif measured.annotations != annotations:
                problems.append(f"{name} was measured on other annotations than those of {params.evaluate.split}")
            conditions, wanted = run["conditions"], base["conditions"]
            if data is not None and conditions.get("data") != data:
                problems.append(f"{name} was trained on other data than data/{params.data.name}.json describes")
            elif conditions.get("data") != wanted.get("data"):
                problems.append(f"{name} was trained on other data than {one}")
            other = sorted(key for key in wanted if key != "data" and conditions.get(key) != wanted[key])
            if other:
                problems.append(
                    f"{name} (revision {run['revision']}) differs from {one} (revision {base['revision']}) in "
                    f"{', '.join(other)}"
                )
    if problems:
        raise InputError(f"these runs cannot be compared: {'; '.join(problems)}: run `dvc repro`")
