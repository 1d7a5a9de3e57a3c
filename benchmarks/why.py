"""Why GHM-C as published fails on small populations: what its weights do while the default is trained.

    nice python -m benchmarks.why [training] [arms] [sgd] [coco] [tables]

Run it where `dvc repro data backbone` has been run; all five parts by default. One epoch of the default, 400 steps with
a whole schedule, one thread.

- *training*: one training with each of four losses for classes. Every 10 steps the gradients of five losses are
  taken at the same weights on the same batch. At its end the weights are held, and 32 batches show what changes from
  one to the next.
- *arms*: trainings that a prediction tells apart, AP on the whole validation split. What has been trained is kept.
- *sgd*: Focal Loss and GHM-C by SGD, each at five learning rates and, at the best, with four weights.
- *coco*: counts at COCO's size, simulated: `benchmarks/why_coco.py`.
- *tables*: Markdown of `docs/why.md`, and its figure.

Writes `benchmarks/results/why.json` and `why.png`.

Shapes: N anchors of a batch, C classes, L levels, K unit regions, W weights of the network.
"""

import argparse
import json
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import why_arms, why_coco, why_page
from benchmarks.why_measures import (
    BINS,
    MOMENTUM,
    Regions,
    cosine,
    effective_number,
    of_counts,
    of_regions,
    share,
    signal,
)
from benchmarks.why_training import LOSSES, TRAINED, Training, built
from ghm import files
from ghm.head import Examples
from ghm.losses import GHMC
from ghm.losses.density import moving_averages
from ghm.training import batches
from ghm.training.run import context

RESULT = Path(__file__).parent / "results" / "why.json"
EVERY, PROBED = 10, 32
WARM = 100  # steps, the default's warm-up, which summaries leave out
PAIRS = [("FL", "GHM-C"), ("FL", "GHM-C + 100"), ("GHM-C", "GHM-C + 100"), ("GHM-C + 100", "GHM-C + positives")]


def looked_at(examples: Examples, found: dict[str, tuple[Tensor, Tensor]], shared_W: Tensor) -> dict[str, Any]:
    """Of one batch: sizes, shares and directions of the gradients of all losses; shares of each level, and of all."""
    regions = Regions(examples)
    rare_NC = regions.rare()
    result: dict[str, Any] = {"positives": regions.positives}
    for name in LOSSES:
        logit_NC, weight_W = found[name]
        size_NC = logit_NC.abs()
        parts = [*zip(size_NC.split(regions.sizes), rare_NC.split(regions.sizes), strict=True), (size_NC, rare_NC)]
        result[name] = {
            "L1": float(size_NC.double().sum()),
            "L2": float(weight_W.norm()),
            "times boxes": float(weight_W[shared_W].norm() / found["boxes"][1][shared_W].norm()),
            "rare": [share(*part) for part in parts],
            "effective": [effective_number(size) for size, _ in parts],
            "positive": share(size_NC, regions.positive_NC),
        }
    result["cosines"] = [cosine(found[one][1], found[other][1]) for one, other in PAIRS]
    return result


def watched(name: str) -> tuple[Training, Tensor, dict[str, Any]]:
    """Train with a loss and look at it: regions of each step, gradients of all losses every few steps.

    Returns:
        The training; the moving average of the counts as GHM-C has it at the end, [K]; and what was seen.
    """
    training = Training(built()[name], seed=0)
    losses, shared_W = built(), training.shared()
    counts, averages, seen, inner = (
        list[Tensor](),
        [torch.zeros(1, BINS)],
        list[dict[str, Any]](),
        training.head._losses,
    )

    def watching(examples: Examples, positives: Any) -> Any:
        counts.append(Regions(examples).counts())
        averages.append(torch.stack(moving_averages(averages[-1][-1], counts[-1], momentum=MOMENTUM)))
        return inner(examples, positives)

    for number, batch in training.steps():
        if number % EVERY == 0:
            _begin(losses, averages[-1][-1])
            seen.append({"step": number, **looked_at(*training.gradients(batch, losses), shared_W)})
        training.head._losses = watching
        training.step(number, batch)
        training.head._losses = inner
    result = of_counts(torch.stack(counts[WARM:]), torch.stack(averages[1 + WARM :]))
    return training, averages[-1][-1], {**result, "gradients": summary(seen), "AP": training.ap()}


def _begin(losses: dict[str, Any], average_K: Tensor) -> None:
    """Have every GHM-C go on from this average."""
    for loss in losses.values():
        if isinstance(loss, GHMC) and loss.acc_sum is not None:
            loss.acc_sum.copy_(average_K)


def summary(seen: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians after the warm-up, and sizes over the steps."""
    late = [each for each in seen if each["step"] >= WARM]
    result: dict[str, Any] = {
        "steps": [each["step"] for each in seen],
        "positives": median(each["positives"] for each in late),
        "cosines": [median(values) for values in zip(*(each["cosines"] for each in late), strict=True)],
    }
    for name in LOSSES:
        of = result[name] = {key: [each[name][key] for each in seen] for key in ("L1", "L2")}
        of |= {key: median(each[name][key] for each in late) for key in ("times boxes", "positive")}
        for key in ("rare", "effective"):
            of[key] = [median(values) for values in zip(*(each[name][key] for each in late), strict=True)]
    return result


def probed(training: Training, average_K: Tensor) -> dict[str, Any]:
    """With the weights held, what changes from batch to batch; of the batches alone, and of two and four as one."""
    sampler, dataset = training.loader.batch_sampler, training.loader.dataset
    sampler.start(1, 0)
    order = [*islice(sampler, PROBED)]
    training.engine.detector.train()
    result: dict[str, Any] = {"signal": {}}
    for at_once in (1, 2, 4):
        losses, sums, squares = built(), dict[str, Any](), dict.fromkeys(LOSSES, 0.0)
        _begin(losses, average_K * at_once)
        seen = []
        for start in tqdm(range(0, PROBED, at_once), leave=False):
            images = [dataset[place] for group in order[start : start + at_once] for place in group]
            examples, found = training.gradients(batches.collate(images), losses)
            seen.append(Regions(examples))
            for name in LOSSES:
                by_W = found[name][1]
                sums[name] = sums.get(name, 0) + by_W
                squares[name] += float(by_W.double().square().sum())
        result["signal"][8 * at_once] = {name: signal(sums[name], squares[name], len(seen)) for name in LOSSES}
        if at_once == 1:
            result["cosines of the mean"] = [cosine(sums[one], sums[other]) for one, other in PAIRS]
            result |= of_regions(seen, average_K)
    return result


def rounded(content: Any) -> Any:
    """Numbers to four digits, so that the file can be read; NaN is null."""
    if isinstance(content, dict):
        return {str(key): rounded(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [rounded(value) for value in content]
    if isinstance(content, float):
        return float(f"{content:.4g}") if content == content else None
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("training", "arms", "sgd", "coco", "tables")
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=[])
    parser.add_argument("--seeds", type=int, default=1, help="of the arms")
    parser.add_argument(
        "--arms", nargs="+", choices=why_arms.ARMS, default=[*why_arms.ARMS], help="those to train, by default all"
    )
    arguments = parser.parse_args()
    wanted = arguments.parts or parts
    torch.set_num_threads(1)
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}

    def keep() -> None:
        files.write_json(RESULT, rounded(result))

    if "training" in wanted:
        result["context"] = context()
        for name in TRAINED:
            training, average_K, result.setdefault("training", {})[name] = watched(name)
            result.setdefault("probe", {})[name] = probed(training, average_K)
            keep()
    if "arms" in wanted:
        for _ in why_arms.arms(arguments.arms, arguments.seeds, result):
            keep()
    if "sgd" in wanted:
        for _ in why_arms.sgd(result):
            keep()
    if "coco" in wanted:
        result["coco"] = why_coco.simulated({name: rounded(result["probe"])[name] for name in ("FL", "GHM-C")})
        keep()
    if "tables" in wanted:
        print(why_page.tables(rounded(result)))
        why_page.draw(rounded(result), RESULT.parent)


if __name__ == "__main__":
    main()
