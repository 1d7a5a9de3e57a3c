"""Does the ONNX graph find what PyTorch finds? Shapes: N detections of PyTorch, M of ONNX."""

import contextlib
import io
import logging
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from tqdm import tqdm

from ghm.detect.detector import Detector
from ghm.errors import InputError
from ghm.export.onnx_model import Runtime
from ghm.predict import Detections, predict
from ghm.registry import DATASETS
from ghm.training.samples import BadImages, collate
from ghm.words import count

SCORE = 0.05  # detections above it are compared
TOLERANCE = 1e-4  # of scores, and of corners as a share of the image's longer side
ALLOWED = 0.01  # share of detections that rounding may decide: whether they are kept, and which of two like ones is
_log = logging.getLogger(__name__)


def require_same(detector: Detector, runtime: Runtime, images: int) -> None:
    """Compare the graph with PyTorch on evenly spaced images of the validation split of the run.

    Raises:
        InputError: the split is not there, or more than `ALLOWED` of the detections have no like on the other side.
    """
    annotations = Path(detector.cfg.validation.annotations)
    if not annotations.is_file():
        raise InputError(f"{annotations}, to compare on, is missing: run `dvc repro data`, or export with --check 0")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools says how long it takes
        dataset = DATASETS.build(detector.cfg.validation.dataset)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(images, len(dataset))).astype(int)).tolist()
    bad_images = BadImages(len(chosen))
    total = alone = 0
    for index in tqdm(chosen, desc="compared", unit="image", disable=None):
        sample = dataset[index]
        for said, pytorch in predict(detector.model, [collate([sample])], bad_images):
            onnx = runtime(sample["inputs"].flip(0)[None].float().numpy())
            onnx = Detections(onnx.box_N4 / np.tile(said.scale_factor, 2), onnx.score_N, onnx.label_N)
            pytorch, onnx = pytorch.above(SCORE), onnx.above(SCORE)
            detections = len(pytorch.score_N) + len(onnx.score_N)
            total, alone = total + detections, alone + detections - 2 * alike(pytorch, onnx, max(said.ori_shape))
    compared = f"{count(alone, 'detection')} of {total:,} on {count(len(chosen), 'image')}"
    if alone > ALLOWED * total:
        raise InputError(f"ONNX and PyTorch differ in {compared}, and nothing is written")
    _log.info("ONNX and PyTorch differ in %s, of score %s or more", compared, SCORE)


def alike(pytorch: Detections, onnx: Detections, side: int) -> int:
    """How many detections have a like on the other side, one each; `side` is the image's longer one, in pixels."""
    score_NM = np.abs(pytorch.score_N[:, None] - onnx.score_N)
    box_NM = np.abs(pytorch.box_N4[:, None] - onnx.box_N4).max(axis=2) / side
    like_NM = (pytorch.label_N[:, None] == onnx.label_N) & (score_NM <= TOLERANCE) & (box_NM <= TOLERANCE)
    return int((maximum_bipartite_matching(csr_array(like_NM)) >= 0).sum())
