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


def nms(boxes: Any, scores: Any, *, iou_threshold: float, offset: int) -> Any:
    """Indices of the boxes that survive non-maximum suppression, best first: [N, 4], [N] -> [K].

    Raises:
        NotImplementedError: `offset` 1, the pixel convention of mmdet 1, which torchvision does not know.
    """
    import torchvision

    if offset != 0:
        raise NotImplementedError(f"nms: offset must be 0 without compiled mmcv, got {offset}; {_REMEDY}")
    return torchvision.ops.nms(boxes, scores, iou_threshold)


def _focal_terms(logit_NC: Any, label_N: Any, weight_C: Any, gamma: float, alpha: float) -> tuple[Any, Any, Any, Any]:
    """Focal Loss with s = x for the labelled class and -x for others: -alpha_t * sigmoid(-s)**gamma * logsigmoid(s)."""
    import torch

    classes = torch.arange(logit_NC.shape[1], device=logit_NC.device)
    positive_NC = label_N[:, None] == classes
    signed_NC = torch.where(positive_NC, logit_NC, -logit_NC)
    factor_NC = torch.where(positive_NC, alpha, 1.0 - alpha)
    if weight_C.numel():
        in_range_N = (label_N >= 0) & (label_N < len(classes))
        weight_N = torch.where(in_range_N, weight_C[label_N.clamp(0, len(classes) - 1)], 1.0)
        factor_NC = factor_NC * weight_N[:, None]
    modulation_NC = torch.sigmoid(-signed_NC) ** gamma
    return positive_NC, signed_NC, factor_NC, modulation_NC


def sigmoid_focal_loss_forward(
    logit_NC: Any, label_N: Any, weight_C: Any, output_NC: Any, *, gamma: float, alpha: float
) -> None:
    """Write the Focal Loss of every example and class into `output_NC`; labels are 0..C-1, others background."""
    import torch

    _, signed_NC, factor_NC, modulation_NC = _focal_terms(logit_NC, label_N, weight_C, gamma, alpha)
    output_NC.copy_(-factor_NC * modulation_NC * torch.nn.functional.logsigmoid(signed_NC))


def sigmoid_focal_loss_backward(
    logit_NC: Any, label_N: Any, weight_C: Any, gradient_NC: Any, *, gamma: float, alpha: float
) -> None:
    """Write the derivative of the Focal Loss by the logits into `gradient_NC`."""
    import torch

    positive_NC, signed_NC, factor_NC, modulation_NC = _focal_terms(logit_NC, label_N, weight_C, gamma, alpha)
    probability_NC = torch.sigmoid(signed_NC)
    log_NC = torch.nn.functional.logsigmoid(signed_NC)
    slope_NC = factor_NC * modulation_NC * (gamma * probability_NC * log_NC - (1 - probability_NC))
    gradient_NC.copy_(torch.where(positive_NC, slope_NC, -slope_NC))


PROVIDED: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (nms, sigmoid_focal_loss_forward, sigmoid_focal_loss_backward)
}

_REMEDY = "install mmcv 2.1.0 built from source for this PyTorch (`pip install --no-binary mmcv mmcv==2.1.0`)"


def _missing(name: str) -> Callable[..., NoReturn]:
    def refuse(*_args: object, **_kwargs: object) -> NoReturn:
        raise NotImplementedError(f"the mmcv operator `{name}` is not provided here: {_REMEDY}")

    return refuse


class _Extension(ModuleType):
    """mmcv looks every operator up when it is imported, so unknown ones fail only when they are called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return PROVIDED.get(name) or _missing(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == EXTENSION else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Extension(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """The module is complete as created."""


def install() -> None:
    """Make `import mmcv._ext` work where mmcv has no compiled extension. Idempotent; imports nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
