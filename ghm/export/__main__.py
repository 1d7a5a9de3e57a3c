"""`python -m ghm.export --variant ghmc_ghmr --out DIR`: a trained variant for other programs.

Writes

- `DIR/model.onnx`: from pixels to boxes, NMS inside. Input `image`, float32 [1, 3, H, W] in R, G, B from 0 to 255, of
  any size; the image is to be resized as in training (`image_scale` and `keep_ratio` in the file's metadata), and is
  normalised and padded inside. Outputs, best first: `boxes` [N, 4] in pixels of the input (left, top, right, bottom),
  `scores` [N], `labels` [N], numbers into `classes` of the metadata, whose `operating_score` is that of the best F1.
- `DIR/config.py` and `DIR/model.pth`: the detector in mmdet's own types, for mmdet's own tools. Paths of the data set
  stay as they are, relative to the repository's root.

The graph is compared with PyTorch on images of the validation split, and nothing is written where they differ.
"""

import argparse
from pathlib import Path

from ghm.cli import run
from ghm.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ghm.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--variant", required=True, help="a trained variant: runs/<variant>/seed_<n>/")
    add("--seed", type=int, help="which of its models; the first of `seeds` in params.yaml")
    add("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    about = "images of the validation split to compare on (%(default)s), 0: do not compare"
    add("--check", type=int, default=100, metavar="IMAGES", help=about)
    arguments = parser.parse_args()
    if arguments.check < 0:
        raise InputError(f"--check must be 0 or greater, got {arguments.check}")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise InputError(f"--out must be a folder, {arguments.out} is a file")
    # Not before: help and mistakes need not wait for PyTorch and mmdet.
    from ghm import params
    from ghm.export.run import export

    seed = params.load().seeds[0] if arguments.seed is None else arguments.seed
    export(arguments.variant, seed, arguments.out, arguments.check)


if __name__ == "__main__":
    run(main)
