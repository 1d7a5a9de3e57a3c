"""`python -m ghm.fit`: write anchors and an image scale that fit the data set into `params.yaml`, keep its comments.

They are those that the stage `data` suggests where the present ones do not fit, found as `ghm/inspection/search.py`
says. `--largest 320` keeps the images from growing beyond 320 pixels.
"""

import argparse

from ghm import data, params, presets
from ghm.cli import run
from ghm.inspection import search


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ghm.fit", description=__doc__)
    parser.add_argument("--largest", type=int, help="longest side of an image, in pixels (default: that of the images)")
    arguments = parser.parse_args()
    parameters = params.load()
    data.ensure(parameters)
    fit = search.of_training_split(parameters, arguments.largest)
    print(fit.sentence())
    if fit.suggested:
        print(presets.merge(fit.suggested.sections(), "what fits"))


if __name__ == "__main__":
    run(main)
