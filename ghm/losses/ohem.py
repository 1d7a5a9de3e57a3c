"""Online hard example mining for one-stage detectors. Shapes: N examples (anchors), C classes."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ghm.losses.checks import check_arguments, check_shapes


class OHEMLoss(nn.Module):
    """Cross entropy of the hardest anchors alone: those with the largest loss.

    Source: Shrivastava et al., arXiv 1604.03540, for one-stage detectors as in section 5.1 of arXiv 1708.02002: every
    anchor is scored by its loss, summed over classes, and the mean is taken over a mini-batch of the hardest.

    Deviation: no non-maximum suppression among the anchors, which neither source needs for its main point.

    Args:
        keep: anchors of a call that count, 1 or more; all of them where there are fewer.
        use_sigmoid: must be True.
        loss_weight: factor on the result.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, keep: int = 512, use_sigmoid: bool = True, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_arguments(keep=keep, use_sigmoid=use_sigmoid, loss_weight=loss_weight)
        self.keep = keep
        self.use_sigmoid = use_sigmoid
        self.loss_weight = loss_weight

    def forward(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, avg_factor: float | Tensor | None = None
    ) -> Tensor:
        """Return the loss in float32, [].

        Args:
            pred: logits, [N, C].
            target: labels, [N]: 0..C-1 are classes, anything else is background.
            weight: factor of each anchor, [N]; those of 0 do not count. None: 1.
            avg_factor: not used, for the mean is over the anchors that are kept; heads of mmdet give it.

        Raises:
            ValueError: shapes do not fit.
        """
        check_shapes(pred.shape[:-1], target=target, weight=weight)
        logit_NC = pred.float()
        hit_NC = target[:, None] == torch.arange(logit_NC.shape[1], device=target.device)
        loss_NC = functional.binary_cross_entropy_with_logits(logit_NC, hit_NC.float(), reduction="none")
        loss_N = loss_NC.sum(-1) if weight is None else loss_NC.sum(-1) * weight
        hardest_K = loss_N.topk(min(self.keep, len(loss_N)), sorted=False).values
        return self.loss_weight * hardest_K.sum() / (hardest_K > 0).sum().clamp(min=1)
