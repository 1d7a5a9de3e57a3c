"""`python -m ghm.detect --variant ghmc_ghmr photos/ --out found`: a trained detector on your own images.

Writes `found/<name>.jpg`, the images with boxes drawn into them, and `found/detections.json`, a COCO file whose
annotations have scores. With `--config` and `--checkpoint` in place of `--variant`: any detector of mmdet. With
`--split` in place of images: a split of the data set, as COCO's evaluation server takes it.
"""

import argparse
from pathlib import Path

from ghm.cli import run
from ghm.errors import InputError


def main() -> None:
    arguments = _parser().parse_args()
    _check(arguments)
    # Not before: help and mistakes need not wait for PyTorch and mmdet.
    from ghm import params
    from ghm.detect import submission
    from ghm.detect.detector import Detector, find_run
    from ghm.detect.run import detect

    config, checkpoint = arguments.config, arguments.checkpoint
    if arguments.variant:
        seed = params.load().seeds[0] if arguments.seed is None else arguments.seed
        config, checkpoint = find_run(arguments.variant, seed)
        if arguments.split:
            submission.write(params.load(), arguments.variant, seed, checkpoint, arguments.split, arguments.out)
            return
    detect(
        Detector.open(config, checkpoint, arguments.score),
        arguments.images,
        arguments.out,
        score=arguments.score,
        batch_size=arguments.batch_size,
        pictures=arguments.pictures,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ghm.detect", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("images", metavar="IMAGE_OR_FOLDER", nargs="*", type=Path, help="folders are searched for images")
    add("--variant", help="a trained variant: the model of runs/<variant>/seed_<n>/")
    add("--seed", type=int, help="which of its models; the first of `seeds` in params.yaml")
    add("--config", type=Path, help="a config of mmdet, in place of --variant")
    add("--checkpoint", type=Path, help="the checkpoint that belongs to --config")
    add("--split", help="a split of the data set in place of images, such as test-dev")
    add("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    add("--score", type=float, default=0.3, help="the lowest score that is shown (%(default)s)")
    add("--batch-size", type=int, default=8, help="images at once (%(default)s)")
    add("--no-pictures", dest="pictures", action="store_false", help="write detections.json alone")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    files_of_mmdet = [arguments.config, arguments.checkpoint]
    wrong = {
        "name a detector: --variant, or --config and --checkpoint": not arguments.variant and not any(files_of_mmdet),
        "--config and --checkpoint belong together: name both": any(files_of_mmdet) and not all(files_of_mmdet),
        "--variant takes the place of --config and --checkpoint: leave one out": arguments.variant
        and any(files_of_mmdet),
        "--seed belongs to --variant: leave it out": arguments.seed is not None and not arguments.variant,
        "--split needs --variant: it is about a trained variant": arguments.split and not arguments.variant,
        "name images or folders, or else a --split": bool(arguments.images) == bool(arguments.split),
        f"--score must be in [0, 1], got {arguments.score}": not 0 <= arguments.score <= 1,
        f"--batch-size must be 1 or greater, got {arguments.batch_size}": arguments.batch_size < 1,
        f"--out must be a folder, {arguments.out} is a file": arguments.out.exists() and not arguments.out.is_dir(),
    }
    for sentence, is_so in wrong.items():
        if is_so:
            raise InputError(sentence)


if __name__ == "__main__":
    run(main)
