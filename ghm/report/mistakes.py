"""The figure of errors: what each kind of mistake costs each variant."""

import numpy as np

from ghm.evaluation.errors import KINDS
from ghm.params import Params
from ghm.report.inputs import Results
from ghm.report.style import Plot, colours, legend, new_figure


def mistakes(results: Results, params: Params) -> Plot:
    """Draw how much AP50 each kind of error costs, mean over seeds, with the range over seeds."""
    figure = new_figure(4.3)
    ax = figure.subplots()
    width = 0.8 / len(params.variants)
    for number, (name, colour) in enumerate(colours(params.variants).items()):
        cost_SK = 100 * np.array([[seed[kind] for kind in KINDS] for seed in results.errors[name]])
        place_K = np.arange(len(KINDS)) + (number - (len(params.variants) - 1) / 2) * width
        ax.bar(place_K, cost_SK.mean(axis=0), width * 0.9, color=colour)
        if len(cost_SK) > 1:
            ax.vlines(place_K, cost_SK.min(axis=0), cost_SK.max(axis=0), color="black", linewidth=1)
    ax.set_xticks(range(len(KINDS)), KINDS)
    ax.set(title="AP50 that each kind of error costs", ylabel="points")
    ax.grid(visible=False, axis="x")
    legend(figure, params.variants)
    return Plot(
        figure,
        alt="Points of AP50 that classification, localisation, duplicate, background and missed errors cost a variant.",
        caption="**Errors** by kind, as TIDE ([arXiv 2008.08115](https://arxiv.org/abs/2008.08115)): a cost is what "
        "AP50 would gain if this kind alone were mended; costs do not add up. *Classification*: IoU 0.5 or more with a "
        "box of another class; *localisation*: IoU 0.1 to 0.5 with one of its own; *both*: 0.1 to 0.5 with one of "
        "another; *duplicate*: a better detection has the box; *background*: no box; *missed*: a box that nothing was "
        "meant for." + (" Lines: range over seeds." if len(params.seeds) > 1 else ""),
    )
