"""The tables and the figure of `docs/why.md`, from what `benchmarks/why.py` has measured."""

from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks.why_arms import RATES, WEIGHTS
from benchmarks.why_coco import EXTREMES
from benchmarks.why_measures import BINS, RARE
from ghm.report import style

LITTLE = 0.05  # of the gradient
ENOUGH, SHOWN = 50, (3, 6, 9, 12, 15, 18, 21)  # logits to take a share of; regions in the table of scores
WINDOW = 5  # gradients at either end of a training
COUNTS = (1, 3, 10, 30, 100, 1000, 10**6)
LINES = {"FL": "#0072B2", "GHM-C": "#D55E00", "GHM-C + 100": "#CC79A7", "GHM-C + positives": "#009E73"}
LEVELS = ("#000000", "#56B4E9", "#E69F00")
VARIED = ("count", "GHM-C without average", "GHM-C", "GHM-C + 100", "GHM-C + positives")


def tables(result: dict[str, Any]) -> str:
    """Markdown, each between a pair of marks."""
    makers = (losses, scores, same, directions, regions, variations, arms, sgd, coco)
    return "\n\n".join(
        f"<!-- {make.__name__} -->\n\n{make(result)}\n\n<!-- end of {make.__name__} -->" for make in makers
    )


def table(head: str, rows: list[list[Any]]) -> str:
    columns = head.count("|") + 1
    lines = [f"| {head} |", "|---|" + "---:|" * (columns - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def regions(result: dict[str, Any]) -> str:
    found = result["training"]["GHM-C"]
    own = found["gradients"]["GHM-C"]
    rows = [
        [
            level,
            f"{found['logits'][level]:,.0f}",
            f"{found['occupied'][level]:.1f}",
            f"{found['rare of occupied'][level]:.0%}",
            f"{own['rare'][level]:.0%}",
            f"{own['effective'][level]:,.0f}",
            f"{found['average times own count'][level]['first']:.2g}",
            f"{found['average times own count'][level]['others']:.2g}",
            f"{found['total weight'][level]:.2f}",
        ]
        for level in range(len(found["logits"]))
    ]
    every = [
        "all",
        f"{sum(found['logits']):,.0f}",
        "",
        f"{found['rare of occupied, all']:.0%}",
        f"{own['rare'][-1]:.0%}",
        f"{own['effective'][-1]:,.0f}",
        *[""] * 3,
    ]
    head = (
        f"level | logits | regions occupied, of {BINS} | of these rare | gradient from rare | effective number | "
        "density / own count, easiest region | in the others | total weight"
    )
    return table(head, [*rows, every])


def losses(result: dict[str, Any]) -> str:
    rows = []
    for name in LINES:
        training, probe = result["training"][name], result["probe"][name]
        own = training["gradients"][name]
        ends = [f"{mean(own[key][-WINDOW:]) / mean(own[key][:WINDOW]):.2f}" for key in ("L1", "L2")]
        rows.append(
            [
                name,
                f"{100 * training['AP']:.1f}",
                *ends,
                f"{own['times boxes']:.2f}",
                f"{own['rare'][-1]:.0%}",
                f"{own['positive']:.0%}",
                f"{own['effective'][-1]:,.0f}",
                f"{probe['score per positive']:.1f}",
            ]
        )
    head = (
        "trained with | AP | L1 at the end / first | L2 at the end / first | L2 / that of boxes | from rare regions | "
        "from positives | effective number | sum of scores / positives"
    )
    return table(head, rows)


def directions(result: dict[str, Any]) -> str:
    pairs = ("FL, GHM-C", "FL, GHM-C + 100", "GHM-C, GHM-C + 100", "GHM-C + 100, GHM-C + positives")
    rows = []
    for place, pair in enumerate(pairs):
        cells = []
        for network in ("FL", "GHM-C"):
            cells.append(f"{result['training'][network]['gradients']['cosines'][place]:.2f}")
            cells.append(f"{result['probe'][network]['cosines of the mean'][place]:.2f}")
        rows.append([pair, *cells])
    return table("losses | FL's training: of a batch | mean of 32 at its end | GHM-C's: of a batch | mean of 32", rows)


def same(result: dict[str, Any]) -> str:
    """What losses make of the same weights and batches: those of the training with FL and with GHM-C."""
    rows = []
    for name in ("FL", "CE", *list(LINES)[1:]):
        cells = []
        for network in ("FL", "GHM-C"):
            of = result["training"][network]["gradients"][name]
            signal = result["probe"][network]["signal"]
            cells += [f"{of['rare'][-1]:.0%}", f"{of['positive']:.0%}", f"{of['effective'][-1]:,.0f}"]
            cells.append(" / ".join(f"{signal[size][name]:.2f}" for size in ("8", "32")))
        rows.append([name, *cells])
    head = "from rare regions | from positives | effective number | signal, 8 / 32 images"
    return table(f"loss | FL's network: {head} | GHM-C's: {head}", rows)


def balanced(count_K: np.ndarray, smoothing: float = 0.0) -> np.ndarray:
    """The share of positives at which GHM-C has no reason to move a score, for scores in the middle of each region.

    A positive with score p has norm 1 - p and a weight by the density there, a negative norm p and the weight of that.
    With q positives of all: q (1 - p) / R(1 - p) = (1 - q) p / R(p).
    """
    score_K = (np.arange(BINS) + 0.5) / BINS
    pull_K, push_K = score_K * (count_K[::-1] + smoothing), (1 - score_K) * (count_K + smoothing)
    return pull_K / np.maximum(pull_K + push_K, 1e-30)


def counted(probe: dict[str, Any]) -> np.ndarray:
    """Logits of each region, in all batches. [K]"""
    return np.array(probe["histogram"]["positive"], dtype=float) + probe["histogram"]["negative"]


def scored(probe: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Logits of each range of scores in all batches, and the share of positives among them."""
    histogram = probe["histogram"]
    positive_K, negative_K = np.array(histogram["positive"], float)[::-1], np.array(histogram["negative"], float)
    number_K = positive_K + negative_K
    return number_K, positive_K / np.maximum(number_K, 1)


def scores(result: dict[str, Any]) -> str:
    expected_K = balanced(counted(result["probe"]["GHM-C"]))
    rows = []
    for region in SHOWN:
        cells = []
        for name in LINES:
            number_K, share_K = scored(result["probe"][name])
            cells.append(f"{100 * share_K[region]:.3g} %" if number_K[region] >= ENOUGH else "")
        cells.insert(2, f"{100 * expected_K[region]:.3g} %")
        rows.append([f"{region / BINS:.2f} to {(region + 1) / BINS:.2f}", *cells])
    head = "score | FL: positives among these | GHM-C | GHM-C, by the balance | GHM-C + 100 | GHM-C + positives"
    return table(head, rows)


def variations(result: dict[str, Any]) -> str:
    varied = result["probe"]["GHM-C"]["variation"]
    count_R = np.array(varied["mean count"])
    rows = []
    for low, high in pairwise(COUNTS):
        chosen_R = (count_R >= low) & (count_R < high)
        if chosen_R.any():
            cells = [f"{np.median(np.array(varied[name])[chosen_R]):.2f}" for name in VARIED]
            expected = f"{np.median(1 / np.sqrt(count_R[chosen_R])):.2f}"
            rows.append([f"{low:,} to {high:,}", int(chosen_R.sum()), expected, *cells])
    return table(f"examples of a region | regions | 1 / sqrt(n) | {' | '.join(VARIED)}", rows)


def arms(result: dict[str, Any]) -> str:
    found, rows = result["arms"], []
    for name, seeds in found.items():
        every = " ".join(f"{100 * ap:.1f}" for ap in seeds.values())
        difference = mean(ap - found["GHM-C"][seed] for seed, ap in seeds.items() if seed in found["GHM-C"])
        rows.append([name, every, f"{100 * difference:+.1f}"])
    return table("trained with | AP of each seed | minus GHM-C, same seeds", rows)


def sgd(result: dict[str, Any]) -> str:
    rows = []
    for name, found in result["sgd"].items():
        best = max(RATES, key=lambda rate: found[f"{rate:g}, 1"] or 0.0)
        keys = [*(f"{rate:g}, 1" for rate in RATES), *(f"{best:g}, {weight:g}" for weight in WEIGHTS)]
        rows.append([name, *("diverges" if found[key] is None else f"{100 * found[key]:.1f}" for key in keys)])
    weights = (f"at the best, weight times {weight:g}" for weight in WEIGHTS)
    return table(" | ".join(["loss", *(f"rate {rate:g}" for rate in RATES), *weights]), rows)


def coco(result: dict[str, Any]) -> str:
    found, rows = result["coco"], []
    for network in ("FL", "GHM-C"):
        for extreme in EXTREMES:
            of = found[network][extreme]
            little = [n for n, rare in zip(found["images"], of["rare by images"], strict=True) if rare < LITTLE]
            medians = " / ".join(f"{value:,.0f}" for value in of["median of hard regions"])
            cells = [f"{of[key][-1]:.0%}" for key in ("rare", "100", "positives")]
            rows.append([f"{network}, {extreme}", medians, *cells, f"{min(little):g}" if little else "more than 128"])
    head = (
        "network of, extreme | median of hard regions, P3 to P7 | gradient from rare | left by 100 | "
        f"left by positives | images for less than {LITTLE:.0%} from rare"
    )
    return table(head, rows)


def draw(result: dict[str, Any], folder: Path) -> None:
    """Four panels: counts, histograms, what scores mean, and how what is rare depends on the size of a step."""
    with style.look([]):
        figure, axes = style.panels([], 4, columns=2, height=2.9)
        for ax, panel in zip(axes, (_counts, _histograms, _scores, _sweep), strict=True):
            panel(ax, result)
            ax.legend(fontsize=8)
        style.Plot(figure, "", "").save(folder, "why")


def _counts(ax: Axes, result: dict[str, Any]) -> None:
    edges = (np.arange(BINS) + 0.5) / BINS
    for level, counts in enumerate(result["training"]["GHM-C"]["count"]):
        low_K, middle_K, high_K = np.maximum(np.array(counts).T, 0.5)  # so that an empty region is on the axis
        ax.fill_between(edges, low_K, high_K, color=LEVELS[level], alpha=0.2, linewidth=0)
        ax.plot(edges, middle_K, color=LEVELS[level], label=f"level {level}")
    ax.axhline(RARE, color=style.GREY, linestyle=":", linewidth=1)
    ax.set(yscale="log", xlabel="gradient norm g", ylabel="examples a step (0 at 0.5)")
    ax.set_title("GHM-C: what a region holds, with 5 to 95 %")


def _histograms(ax: Axes, result: dict[str, Any]) -> None:
    edges = np.arange(BINS + 1) / BINS
    for name, colour in LINES.items():
        both_K = counted(result["probe"][name])
        ax.stairs(both_K / both_K.sum(), edges, color=colour, label=name, linewidth=1.6, baseline=None)
    ax.set(yscale="log", xlabel="gradient norm g", ylabel="share of logits")
    ax.set_title("Logits at the end, by what was trained with")


def _scores(ax: Axes, result: dict[str, Any]) -> None:
    score_K = (np.arange(BINS) + 0.5) / BINS
    for name, colour in LINES.items():
        number_K, share_K = scored(result["probe"][name])
        kept_K = (number_K >= ENOUGH) & (share_K > 0)
        ax.plot(score_K[kept_K], share_K[kept_K], color=colour, label=name)
    expected_K = balanced(counted(result["probe"]["GHM-C"]))
    kept_K = scored(result["probe"]["GHM-C"])[0] >= ENOUGH
    ax.plot(score_K[kept_K], expected_K[kept_K], ":", color=LINES["GHM-C"], label="GHM-C, by the balance")
    ax.plot(score_K, score_K, ":", color=style.GREY, linewidth=1, label="calibrated")
    ax.set(yscale="log", ylim=(1e-5, 1.5), xlabel="score", ylabel="share of positives")
    ax.set_title("What a score means at the end")


def _sweep(ax: Axes, result: dict[str, Any]) -> None:
    found = result["coco"]
    for network in ("FL", "GHM-C"):
        for extreme, dashes in zip(EXTREMES, ("-", "--"), strict=True):
            rare = found[network][extreme]["rare by images"]
            ax.plot(found["images"], rare, dashes, color=LINES[network], label=f"{network}, {extreme}")
    ax.axhline(LITTLE, color=style.GREY, linestyle=":", linewidth=1)
    ax.axvline(2, color=style.GREY, linestyle=":", linewidth=1)
    ax.set(xscale="log", ylim=(0, 1), xlabel="COCO images a step", ylabel="gradient from rare regions")
    ax.set_title("COCO by simulation: when nothing is rare")
