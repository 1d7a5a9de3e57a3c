"""Stage `backbone`: put the pretrained backbone into `weights/`."""

from ghm import backbones, params
from stages import run


def main() -> None:
    backbones.prepare(params.load())


if __name__ == "__main__":
    run(main)
