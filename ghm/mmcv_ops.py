"""The operators that mmdet's RetinaNet wants from mmcv's compiled extension, on PyTorch and torchvision.

mmcv 2.1.0 has no wheel for current PyTorch and takes long to compile. `install` adds a finder behind all others for
the module `mmcv._ext`, so a compiled extension, where there is one, is found first and used.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NoReturn

EXTENSION = "mmcv._ext"


_REMEDY = "install mmcv 2.1.0 built from source for this PyTorch (`pip install --no-binary mmcv mmcv==2.1.0`)"


def nms(boxes: Any, scores: Any, *, iou_threshold: float, offset: int) -> Any:
    """Indices of the boxes that survive non-maximum suppression, best first: [N, 4], [N] -> [K]."""
    import torchvision

    if offset != 0:  # the pixel convention of mmdet 1
        raise NotImplementedError(f"nms: offset must be 0 without compiled mmcv, got {offset}; {_REMEDY}")
    return torchvision.ops.nms(boxes, scores, iou_threshold)


def sigmoid_focal_loss_forward(
    logit_NC: Any, label_N: Any, weight_C: Any, output_NC: Any, *, gamma: float, alpha: float
) -> None:
    """Write the Focal Loss of every example and class into `output_NC`; labels are 0..C-1, others background."""
    import torch

    if weight_C.numel():
        raise NotImplementedError(f"sigmoid_focal_loss: weights of classes need compiled mmcv; {_REMEDY}")
    positive_NC = label_N[:, None] == torch.arange(logit_NC.shape[1], device=logit_NC.device)
    signed_NC = torch.where(positive_NC, logit_NC, -logit_NC)
    log_NC, log_rest_NC = (torch.nn.functional.logsigmoid(sign * signed_NC) for sign in (1, -1))
    output_NC.copy_(-torch.where(positive_NC, alpha, 1.0 - alpha) * (gamma * log_rest_NC).exp() * log_NC)


def sigmoid_focal_loss_backward(
    logit_NC: Any, label_N: Any, weight_C: Any, gradient_NC: Any, *, gamma: float, alpha: float
) -> None:
    """Write the derivative of the Focal Loss by the logits into `gradient_NC`."""
    import torch

    with torch.enable_grad():
        leaf_NC = logit_NC.detach().requires_grad_()
        loss_NC = torch.empty_like(logit_NC)
        sigmoid_focal_loss_forward(leaf_NC, label_N, weight_C, loss_NC, gamma=gamma, alpha=alpha)
        (slope_NC,) = torch.autograd.grad(loss_NC.sum(), leaf_NC)
    gradient_NC.copy_(slope_NC)


def _missing(name: str) -> Callable[..., NoReturn]:
    """mmcv looks every operator up when it is imported, so unknown ones fail only when they are called."""
    if name.startswith("__"):
        raise AttributeError(name)

    def refuse(*_args: object, **_kwargs: object) -> NoReturn:
        raise NotImplementedError(f"the mmcv operator `{name}` is not provided here: {_REMEDY}")

    return refuse


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == EXTENSION else None

    def exec_module(self, module: ModuleType) -> None:
        operators = (nms, sigmoid_focal_loss_forward, sigmoid_focal_loss_backward)
        vars(module).update({operator.__name__: operator for operator in operators}, __getattr__=_missing)


def install() -> None:
    """Make `import mmcv._ext` work where mmcv has no compiled extension. Idempotent; imports nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
