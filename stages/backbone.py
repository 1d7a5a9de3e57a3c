"""Stage `backbone`: put the pretrained backbone into `weights/`."""

from ghm import backbones, params
from ghm.training import processes
from stages import run


def main() -> None:
    with processes.join("none", []):
        backbones.prepare(params.load())


if __name__ == "__main__":
    run(main)
