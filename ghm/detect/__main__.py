"""`python -m ghm.detect --variant ghmc_ghmr photos/ --out found`: a trained detector on your own images.

Writes `found/<name>.jpg`, the images with boxes drawn into them, and `found/detections.json`, a COCO file whose
annotations have scores. Without `--score`, boxes are shown from the score on that has the best F1 on the validation
split. With `--config` and `--checkpoint` in place of `--variant`: any detector of mmdet.
"""

import argparse
from pathlib import Path

from ghm.cli import run
from ghm.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ghm.detect", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("images", metavar="IMAGE", nargs="+", type=Path, help="also a folder to search, or a pattern such as 'a/*.jpg'")
    add("--variant", help="a trained variant: the model of runs/<variant>/seed_<n>/")
    add("--seed", type=int, help="which of its models; the first of `seeds` in params.yaml")
    add("--config", type=Path, help="a config of mmdet, in place of --variant")
    add("--checkpoint", type=Path, help="the checkpoint that belongs to --config")
    add("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    add("--score", type=float, help="the lowest score that is shown; that of the best F1, or 0.3 where none is known")
    add("--classes", metavar="A,B", help="the others are left out")
    about = "a COCO file: its images alone, with its ids of images and classes; writes results.json, too"
    add("--annotations", type=Path, metavar="FILE", help=about)
    add("--crops", action="store_true", help="write DIR/crops/<class>/, a picture of each box")
    add("--no-pictures", dest="pictures", action="store_false", help="write detections.json alone")
    arguments = parser.parse_args()
    variant, config, checkpoint = arguments.variant, arguments.config, arguments.checkpoint
    wrong = {
        "name one detector: --variant, or --config and --checkpoint": bool(variant) == bool(config)
        or bool(config) != bool(checkpoint),
        "--seed belongs to --variant": not variant and arguments.seed is not None,
        f"--score must be in [0, 1], got {arguments.score}": not 0 <= (arguments.score or 0) <= 1,
        f"--out must be a folder, {arguments.out} is a file": arguments.out.exists() and not arguments.out.is_dir(),
    }
    for sentence, is_so in wrong.items():
        if is_so:
            raise InputError(sentence)
    # Not before: help and mistakes need not wait for PyTorch and mmdet.
    from ghm import params
    from ghm.detect.detector import Detector, find_run, operating_point
    from ghm.detect.run import detect

    point = None
    if variant:
        seed = params.load().seeds[0] if arguments.seed is None else arguments.seed
        config, checkpoint = find_run(variant, seed)
        point = operating_point(variant, seed)
    detector = Detector.open(config, checkpoint, arguments.score, point)
    detect(
        detector,
        arguments.images,
        arguments.out,
        pictures=arguments.pictures,
        crops=arguments.crops,
        classes=[name.strip() for name in arguments.classes.split(",")] if arguments.classes else [],
        file=arguments.annotations,
    )


if __name__ == "__main__":
    run(main)
