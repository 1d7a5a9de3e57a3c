"""Whether runs may stand in one table: same data, same code, same training but for the losses and the seed."""

from typing import Any

from ghm.errors import InputError
from ghm.evaluation.bootstrap import Resampled
from ghm.params import Params


def require(
    params: Params,
    contexts: dict[str, list[dict[str, Any]]],
    resampled: dict[str, list[Resampled]],
    measured_on: str,
    trained_on: str,
) -> None:
    """Refuse runs that differ in more than losses and seeds.

    Args:
        contexts: of each variant, seed by seed: what `training.train` recorded.
        resampled: of each variant, seed by seed.
        measured_on: the reported split that the manifest describes, of `fingerprint.measured_data`.
        trained_on: the data to train on that it describes, of `fingerprint.data_checksum`.

    Raises:
        InputError: with the list of runs that do not belong.
    """
    first = next(iter(contexts))
    base = contexts[first][0]
    one = f"{first}, seed {params.seeds[0]}"
    manifest = f"data/{params.data.name}.json describes"
    problems = []
    for variant, runs in contexts.items():
        for seed, run, measured in zip(params.seeds, runs, resampled[variant], strict=True):
            name = f"{variant}, seed {seed}"
            if run["dataset"] != params.data.name:
                problems.append(f"{name} was trained on {run['dataset']}, and the report is on {params.data.name}")
            elif measured.measured_on != measured_on:
                problems.append(
                    f"{name} was measured on other annotations or images of {params.evaluate.split} than {manifest}"
                )
            conditions, wanted = run["conditions"], base["conditions"]
            if conditions["data"] != trained_on:
                problems.append(f"{name} was trained on other data than {manifest}")
            other = sorted(key for key in wanted if key != "data" and conditions.get(key) != wanted[key])
            if other:
                problems.append(
                    f"{name} (revision {run['revision']}) differs from {one} (revision {base['revision']}) in "
                    f"{', '.join(other)}"
                )
    if problems:
        raise InputError(f"these runs cannot be compared: {'; '.join(problems)}: run `dvc repro`")
