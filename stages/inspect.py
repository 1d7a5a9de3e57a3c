"""Stage `inspect`: what is trained on, seen before training, in `reports/data.md` and `reports/data/`."""

from ghm import data, params
from ghm.inspection import page
from stages import run


def main() -> None:
    parameters = params.load()
    data.ensure(parameters)
    page.write(parameters)


if __name__ == "__main__":
    run(main)
