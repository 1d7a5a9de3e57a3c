"""Stage `data`: make or find the data set, link it, describe it in `data/<name>.json`."""

from ghm import data, params
from stages import run


def main() -> None:
    data.prepare(params.load())


if __name__ == "__main__":
    run(main)
