"""Laws of the front door to mmdet: what `import ghm` puts in the place of mmcv's compiled extension, and finds."""

import importlib
import importlib.util
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch
import torchvision
from mmcv.ops import nms, roi_align, sigmoid_focal_loss
from mmengine.utils.dl_utils.misc import mmcv_full_available
from torch import Tensor

from ghm import mmcv_ops


@pytest.mark.filterwarnings("ignore:.*find_loader.*:DeprecationWarning")
def test_mmengine_finds_the_extension():
    assert mmcv_full_available()


def test_a_compiled_extension_would_be_found_first():
    mmcv_ops.install()
    (position,) = [number for number, finder in enumerate(sys.meta_path) if isinstance(finder, mmcv_ops._Finder)]
    assert position > sys.meta_path.index(PathFinder)


def test_a_missing_operator_is_named_with_its_remedy():
    with pytest.raises(NotImplementedError, match="`roi_align_forward` is not provided here: install mmcv 2.1.0"):
        roi_align(torch.rand(1, 1, 4, 4), torch.rand(1, 5), (2, 2))
    assert not hasattr(importlib.import_module("mmcv._ext"), "__file__")


STEP = """
import sys
import {first}
from mmengine.config import Config
assert "ghm.registry" not in sys.modules
config = Config.fromfile(sys.argv[1])
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

init_default_scope("mmdet")
model = MODELS.build(config.model)
boxes = InstanceData(bboxes=torch.tensor([[10.0, 10.0, 80.0, 90.0]]), labels=torch.tensor([3]))
sample = DetDataSample(gt_instances=boxes, metainfo=dict(img_shape=(128, 128), pad_shape=(128, 128)))
losses, _ = model.parse_losses(model.loss(torch.randn(1, 3, 128, 128), [sample]))
losses.backward()
assert losses.isfinite() and all(weight.grad.isfinite().all() for weight in model.bbox_head.parameters())
print(*(type(loss).__module__ for loss in (model.bbox_head.loss_cls, model.bbox_head.loss_bbox)))
"""


@pytest.mark.parametrize("first", ["ghm.losses", "mmengine"])
def test_a_stock_config_of_mmdet_trains_with_our_losses_in_either_order_of_imports(tmp_path: Path, first: str):
    spec = importlib.util.find_spec("mmdet")
    assert spec is not None and spec.origin is not None
    stock = Path(spec.origin).parent / ".mim" / "configs" / "retinanet" / "retinanet_r18_fpn_1x_coco.py"
    (tmp_path / "config.py").write_text(
        f"""_base_ = "{stock}"
custom_imports = dict(imports=["ghm"])
model = dict(
    backbone=dict(init_cfg=None),
    bbox_head=dict(
        loss_cls=dict(_delete_=True, type="ghm.GHMC", bins=30, momentum=0.75, use_sigmoid=True),
        loss_bbox=dict(_delete_=True, type="ghm.GHMR", mu=0.02, bins=10, momentum=0.7, loss_weight=10.0),
    ),
)
"""
    )
    command = [sys.executable, "-W", "ignore", "-c", STEP.format(first=first), str(tmp_path / "config.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["ghm.losses.ghmc ghm.losses.ghmr"], done.stderr


def boxes(count: int) -> Tensor:
    corner = torch.rand(count, 2) * 20
    return torch.cat([corner, corner + torch.rand(count, 2) * 20], dim=1)


@pytest.mark.parametrize("count", [0, 1, 7, 300])
def test_nms_is_torchvisions(count: int):
    torch.manual_seed(count)
    box_N4, score_N = boxes(count), torch.rand(count)
    detections, kept = map(torch.as_tensor, nms(box_N4, score_N, iou_threshold=0.5))
    assert torch.equal(kept, torchvision.ops.nms(box_N4, score_N, 0.5))
    assert torch.equal(detections[:, 4], score_N[kept])


def test_the_old_pixel_convention_is_refused():
    with pytest.raises(NotImplementedError, match="offset must be 0"):
        nms(boxes(3), torch.rand(3), iou_threshold=0.5, offset=1)


@pytest.mark.parametrize(("examples", "classes"), [(0, 3), (1, 1), (50, 7)])
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.5), (1.5, 1.0)])
def test_focal_loss_is_torchvisions_in_value_and_gradient(examples: int, classes: int, gamma: float, alpha: float):
    torch.manual_seed(examples)
    logit_NC = (5 * torch.randn(examples, classes, dtype=torch.float64)).requires_grad_()
    label_N = torch.randint(0, classes + 1, (examples,))
    target_NC = torch.nn.functional.one_hot(label_N, classes + 1)[:, :classes].double()
    sigmoid_focal_loss(logit_NC, label_N, gamma, alpha, None, "sum").backward()
    ours = logit_NC.grad
    logit_NC.grad = None
    torchvision.ops.sigmoid_focal_loss(logit_NC, target_NC, alpha, gamma, reduction="sum").backward()
    torch.testing.assert_close(ours, logit_NC.grad)


def test_focal_loss_stays_finite_at_extreme_logits():
    logit_NC = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
    loss = sigmoid_focal_loss(logit_NC, torch.tensor([0, 2]), 2.0, 0.25, None, "sum")
    (gradient_NC,) = torch.autograd.grad(loss, logit_NC)
    assert loss.isfinite() and gradient_NC.isfinite().all()


def test_class_weights_of_focal_loss_follow_the_label():
    logit_NC = torch.randn(4, 2)
    label_N = torch.tensor([0, 1, 1, 2])
    plain = sigmoid_focal_loss(logit_NC, label_N, 2.0, 0.25, None, "none")
    weighted = sigmoid_focal_loss(logit_NC, label_N, 2.0, 0.25, torch.tensor([2.0, 3.0]), "none")
    torch.testing.assert_close(weighted, plain * torch.tensor([2.0, 3.0, 3.0, 1.0])[:, None])
