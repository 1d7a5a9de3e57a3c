"""Stage `data`: make or find the data set, link it, describe it in `data/<name>.json`; warn of bad anchors."""

from ghm import data, params
from ghm.inspection import search
from stages import run


def main() -> None:
    parameters = params.load()
    data.prepare(parameters)
    search.warn(parameters)


if __name__ == "__main__":
    run(main)
