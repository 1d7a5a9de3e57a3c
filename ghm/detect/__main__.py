"""`python -m ghm.detect --variant ghmc_ghmr photos/ --out found`: a trained detector on your own images.

Writes `found/<name>.jpg`, the images with boxes drawn into them, and `found/detections.json`, a COCO file whose
annotations have scores. With `--config` and `--checkpoint` in place of `--variant`: any detector of mmdet.
"""

import argparse
from pathlib import Path

from ghm.cli import run
from ghm.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ghm.detect", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("images", metavar="IMAGE_OR_FOLDER", nargs="+", type=Path, help="folders are searched for images")
    add("--variant", help="a trained variant: the model of runs/<variant>/seed_<n>/")
    add("--seed", type=int, help="which of its models; the first of `seeds` in params.yaml")
    add("--config", type=Path, help="a config of mmdet, in place of --variant")
    add("--checkpoint", type=Path, help="the checkpoint that belongs to --config")
    add("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    add("--score", type=float, default=0.3, help="the lowest score that is shown (%(default)s)")
    add("--no-pictures", dest="pictures", action="store_false", help="write detections.json alone")
    arguments = parser.parse_args()
    variant, config, checkpoint = arguments.variant, arguments.config, arguments.checkpoint
    wrong = {
        "name one detector: --variant, or --config and --checkpoint": bool(variant) == bool(config)
        or bool(config) != bool(checkpoint),
        "--seed belongs to --variant": not variant and arguments.seed is not None,
        f"--score must be in [0, 1], got {arguments.score}": not 0 <= arguments.score <= 1,
        f"--out must be a folder, {arguments.out} is a file": arguments.out.exists() and not arguments.out.is_dir(),
    }
    for sentence, is_so in wrong.items():
        if is_so:
            raise InputError(sentence)
    # Not before: help and mistakes need not wait for PyTorch and mmdet.
    from ghm import params
    from ghm.detect.detector import Detector, find_run
    from ghm.detect.run import detect

    if variant:
        seed = params.load().seeds[0] if arguments.seed is None else arguments.seed
        config, checkpoint = find_run(variant, seed)
    detector = Detector.open(config, checkpoint, arguments.score)
    detect(detector, arguments.images, arguments.out, arguments.score, arguments.pictures)


if __name__ == "__main__":
    run(main)
