"""Does the ONNX graph find what PyTorch finds? Shapes: N detections of PyTorch, M of ONNX."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from ghm.detect.detector import Detections
from ghm.words import count

SCORE = 0.05  # detections above it must agree
TOLERANCE = 1e-4  # of scores, of overlaps, and of corners as a share of the image's longer side


@dataclass(frozen=True)
class Rules:
    """What decides whether a detection is kept."""

    score: float
    iou: float
    most: int

    @classmethod
    def of(cls, test_cfg: Any) -> "Rules":
        """Those of mmdet's `test_cfg`."""
        return cls(max(SCORE, test_cfg.score_thr), test_cfg.nms.iou_threshold, test_cfg.max_per_img)


@dataclass
class Outcome:
    """What came of comparing images."""

    rules: Rules
    images: int = 0
    agree: int = 0
    near_ties: int = 0  # on one side only, where rounding decides
    differ: list[str] = field(default_factory=list)  # on one side only otherwise, in words
    score_gap: float = 0.0  # largest of those that agree
    box_gap: float = 0.0  # the same, as a share of the image's longer side

    def __str__(self) -> str:
        """One line for the log."""
        return (
            f"{count(self.images, 'image')}, detections above score {SCORE}: {self.agree:,} agree, to "
            f"{self.score_gap:.0e} in score and {self.box_gap:.0e} of the image's longer side, "
            f"{len(self.differ):,} differ, {self.near_ties:,} are near ties"
        )

    def add(self, name: str, pytorch: Detections, onnx: Detections, candidates: Detections, side: int) -> None:
        """Compare what was found on an image.

        Args:
            name: of the image.
            candidates: of PyTorch, what non-maximum suppression chooses from. A near tie is between these alone: a box
                that PyTorch never had is no tie.
            side: the image's longer one, in pixels.
        """
        self.images += 1
        partner = _partners(pytorch, onnx, side)
        for n, m in partner.items():
            if pytorch.score_N[n] > SCORE:
                self.agree += 1
                self.score_gap = max(self.score_gap, float(abs(pytorch.score_N[n] - onnx.score_N[m])))
                self.box_gap = max(self.box_gap, float(np.abs(pytorch.box_N4[n] - onnx.box_N4[m]).max()) / side)
        alone_N = pytorch.only([n for n in range(len(pytorch.score_N)) if n not in partner])
        alone_M = onnx.only([m for m in range(len(onnx.score_N)) if m not in partner.values()])
        known_N, known_M = range(len(alone_N.score_N)), sorted(_partners(alone_M, candidates, side))
        self._add_alone(f"{name}: PyTorch alone", alone_N, known_N, onnx, alone_M.only(known_M))
        self._add_alone(f"{name}: ONNX alone", alone_M, known_M, pytorch, alone_N)

    def _add_alone(
        self, words: str, alone: Detections, known: Sequence[int], other: Detections, rivals: Detections
    ) -> None:
        """Count what one side keeps alone.

        Args:
            known: numbers of those that both sides had to choose from.
            other: all that the other side keeps.
            rivals: those of them that this side does not keep, and had to choose from.
        """
        for place in range(len(alone.score_N)):
            one = alone.only([place])
            if one.score_N[0] <= SCORE:
                continue
            at_threshold = one.score_N[0] <= self.rules.score + TOLERANCE
            if at_threshold or (place in known and self._is_near_tie(one, other, rivals)):
                self.near_ties += 1
            else:
                corners = ", ".join(f"{corner:.2f}" for corner in one.box_N4[0])
                self.differ.append(f"{words} finds class {one.label_N[0]} at [{corners}], score {one.score_N[0]:.4f}")

    def _is_near_tie(self, one: Detections, other: Detections, rivals: Detections) -> bool:
        """Whether rounding decides if one detection is kept."""
        if len(other.score_N) == self.rules.most and one.score_N[0] <= other.score_N.min() + TOLERANCE:
            return True
        if (np.abs(_overlap(one, other) - self.rules.iou) <= TOLERANCE).any():  # is it suppressed by that one?
            return True
        equal_M = np.abs(rivals.score_N - one.score_N) <= TOLERANCE  # which of the two suppresses the other?
        return bool((equal_M & (_overlap(one, rivals) > self.rules.iou)).any())


def _partners(one: Detections, other: Detections, side: int) -> dict[int, int]:
    """Number of a detection -> number of its like on the other side; who has none is left out."""
    score_NM = np.abs(one.score_N[:, None] - other.score_N)
    box_NM = np.abs(one.box_N4[:, None] - other.box_N4).max(axis=2) / side
    same_NM = (one.label_N[:, None] == other.label_N) & (score_NM <= TOLERANCE) & (box_NM <= TOLERANCE)
    partner: dict[int, int] = {}
    taken: set[int] = set()
    for n in range(len(one.score_N)):
        free = [int(m) for m in np.flatnonzero(same_NM[n]) if m not in taken]
        if free:
            partner[n] = min(free, key=lambda m: box_NM[n, m])
            taken.add(partner[n])
    return partner


def _overlap(one: Detections, other: Detections) -> np.ndarray:
    """Intersection over union of one detection with others [M], 0 with those of another class."""
    iou_M = box_iou(torch.from_numpy(one.box_N4), torch.from_numpy(other.box_N4))[0].numpy()
    return np.where(other.label_N == one.label_N[0], iou_M, 0.0)


def predict(model: Any, packed: dict[str, Any]) -> tuple[Detections, Detections]:
    """PyTorch's detections on an image, corners in pixels of what the network sees.

    Args:
        packed: mmdet's `inputs` and `data_samples` of one image.

    Returns:
        What mmdet's `predict` gives, and the candidates that its non-maximum suppression chooses from.
    """
    with torch.no_grad():
        batch = model.data_preprocessor({name: [value] for name, value in packed.items()}, False)
        maps = model.bbox_head(model.extract_feat(batch["inputs"]))
        metas = [sample.metainfo for sample in batch["data_samples"]]
        kept, candidates = (
            model.bbox_head.predict_by_feat(*maps, batch_img_metas=metas, rescale=False, with_nms=with_nms)[0].numpy()
            for with_nms in (True, False)
        )
    return (
        Detections(kept.bboxes, kept.scores, kept.labels),
        Detections(candidates.bboxes, candidates.scores, candidates.labels),
    )


def pixels(packed: dict[str, Any]) -> np.ndarray:
    """The same image as the graph takes it: float32 [1, 3, H, W] in R, G, B."""
    return packed["inputs"].flip(0)[None].float().numpy()
