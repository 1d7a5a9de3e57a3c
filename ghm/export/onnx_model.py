"""A RetinaNet as one ONNX graph, from the pixels to the boxes that are left after non-maximum suppression.

Shapes: H, W pixels of the image; A anchors of a level, C classes, N detections.
"""

import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.onnx.operators import shape_as_tensor
from torchvision.ops import nms

from ghm.predict import Detections

OPSET = 17
INPUT = "image"
OUTPUTS = ("boxes", "scores", "labels")
TRACED = (96, 160)  # height and width of the image that the graph is recorded with; any other size runs, too


class Portable(nn.Module):
    """What mmdet's `predict` does with one image, without its lists, dicts and conditions.

    Deviation: boxes are put apart by class with the size of the image, not with the largest coordinate of the boxes,
    which does not exist where there are none.

    Args:
        model: `mmdet.RetinaNet` with a `RetinaHead`, in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.test_cfg = model.bbox_head.test_cfg

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            image: float32 [1, 3, H, W] in R, G, B from 0 to 255, resized, not padded.

        Returns:
            Best first: corners in pixels of `image` [N, 4], scores [N], labels [N] from 0 to C - 1.
        """
        limit_4 = shape_as_tensor(image)[[3, 2, 3, 2]].to(image.dtype)
        before = self.model.data_preprocessor
        missing = [-image.shape[side] % before.pad_size_divisor for side in (3, 2)]
        image = (image - before.mean) / before.std
        image = functional.pad(image, (0, missing[0], 0, missing[1]), value=before.pad_value)
        box_N4, score_N, label_N = (torch.cat(parts) for parts in zip(*self._levels(image), strict=True))
        box_N4 = torch.minimum(box_N4.clamp(min=0), limit_4)
        large_N = ((box_N4[:, 2:] - box_N4[:, :2]) > self.test_cfg.min_bbox_size).all(dim=1)
        box_N4, score_N, label_N = box_N4[large_N], score_N[large_N], label_N[large_N]
        offset_N = label_N.to(box_N4.dtype) * (limit_4.max() + 1)
        kept_N = nms(box_N4 + offset_N[:, None], score_N, self.test_cfg.nms.iou_threshold)[: self.test_cfg.max_per_img]
        return box_N4[kept_N], score_N[kept_N], label_N[kept_N]

    def _levels(self, image: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The best boxes, scores and labels of each level."""
        head = self.model.bbox_head
        logits, deltas = head(self.model.extract_feat(image))
        sizes = [level.shape[-2:] for level in logits]
        anchors = head.prior_generator.grid_priors(sizes, dtype=image.dtype, device=image.device)
        best = self.test_cfg.nms_pre
        levels = []
        for logit_map, delta_map, anchor_A4 in zip(logits, deltas, anchors, strict=True):
            logit_AC = logit_map.permute(0, 2, 3, 1).reshape(-1, head.cls_out_channels)
            score_AC = logit_AC.sigmoid() if head.use_sigmoid_cls else logit_AC.softmax(-1)[:, :-1]
            # Decoded before they are chosen: a level always has anchors, and perhaps none of them is chosen.
            box_A4 = head.bbox_coder.decode(anchor_A4, delta_map.permute(0, 2, 3, 1).reshape(-1, 4))
            score_B, place_B = functional.pad(score_AC.flatten(), (0, best), value=-1.0).topk(best)
            chosen_B = score_B > self.test_cfg.score_thr
            place_B = place_B[chosen_B]
            anchor_B = torch.div(place_B, head.num_classes, rounding_mode="floor")
            levels.append((box_A4[anchor_B], score_B[chosen_B], place_B % head.num_classes))
        return levels


def write(model: Any, metadata: Mapping[str, str], path: Path) -> None:
    """Record the graph, check it, and write it with `metadata` in its `metadata_props`.

    Args:
        model: as for `Portable`, on the CPU.
    """
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # PyTorch's older exporter, which needs no package beside it, asks for its own removal and warns of every check
        # of a size. Whether the graph does the same is seen by running it.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Portable(model).eval(),
            (torch.full((1, 3, *TRACED), 128.0),),
            file,  # type: ignore[arg-type]
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes={INPUT: {2: "height", 3: "width"}, **{name: {0: "detections"} for name in OUTPUTS}},
            opset_version=OPSET,
            dynamo=False,
        )
    graph = onnx.load_from_string(file.getvalue())
    onnx.helper.set_model_props(graph, dict(metadata))
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)


def runtime(path: Path) -> Callable[[np.ndarray], Detections]:
    """The graph in a file, run on the CPU: takes float32 [1, 3, H, W], finds corners in pixels of that."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: Detections(*session.run(list(OUTPUTS), {INPUT: image}))
