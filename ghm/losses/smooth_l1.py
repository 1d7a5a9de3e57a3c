"""Smooth L1 by PyTorch's fused operator. Shapes: N examples (anchors), D coordinates."""

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from ghm.losses.checks import Reduction, check_arguments, check_shapes, divisor
from ghm.losses.vectorised import few_rows


class SmoothL1Loss(nn.Module):
    """d^2 / (2 beta) for |d| < beta, |d| - beta / 2 beyond (arXiv 1504.08083, equation 3, which has beta 1).

    Takes the place of `mmdet.SmoothL1Loss`. The loss is computed and returned in float32.

    Args:
        beta: where the quadratic part ends, greater than 0.
        reduction: `mean` divides by `avg_factor`, or by N * D without one; `sum` does not; `none` gives [N, D].
        loss_weight: factor on the result.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, beta: float = 1.0, reduction: Reduction = "mean", loss_weight: float = 1.0) -> None:
        super().__init__()
        check_arguments(beta=beta, reduction=reduction, loss_weight=loss_weight)
        self.beta = beta
        self.reduction: Reduction = reduction
        self.loss_weight = loss_weight

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: Reduction | None = None,
    ) -> Tensor:
        """Return the loss in float32, [] or, with reduction `none`, [N, D].

        `pred`, `target` and `weight` are [N, D]; other arguments and errors are those of `ghm.losses.FocalLoss`.
        """
        reduction = reduction_override or self.reduction
        check_arguments(reduction=reduction)
        check_shapes(pred.shape, target=target, weight=weight)
        total = divisor(pred, reduction, avg_factor)
        everything = pred.detach()
        few = None if weight is None or reduction == "none" else few_rows(weight)
        if few is not None and weight is not None:
            pred, target, weight = pred[few], target[few], weight[few]
        loss = smooth_l1_loss(pred.float(), target.float(), beta=self.beta, reduction="none")
        if weight is not None:
            loss = loss * weight
        if reduction == "none":
            return self.loss_weight * loss
        # As with weights of zero the loss is NaN where any prediction is.
        summed = loss.sum() if few is None else loss.sum() + 0 * everything.sum(dtype=torch.float32)
        return self.loss_weight * summed / total
