"""Focal Loss, at the speed of the losses that it is compared with. Shapes: N examples (anchors), C classes."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ghm.losses import ops
from ghm.losses.checks import Reduction, check_arguments, check_shapes, divisor


class FocalLoss(nn.Module):
    """FL = -alpha_t (1 - p_t)^gamma log(p_t) on logits (arXiv 1708.02002, equation 5).

    Takes the place of `mmdet.FocalLoss` with `use_sigmoid=True` and logits. The loss is computed and returned in
    float32 whatever the dtype of the logits; the gradient has their dtype.

    Args:
        use_sigmoid: must be True.
        gamma: focusing parameter, 0 or more; 0 is cross entropy weighed by alpha.
        alpha: weight of positives, 1 - alpha that of negatives, in [0, 1].
        reduction: `mean` divides by `avg_factor`, or by N * C without one; `sum` does not; `none` gives [N, C].
        loss_weight: factor on the result.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float = 0.25,
        reduction: Reduction = "mean",
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_arguments(use_sigmoid=use_sigmoid, gamma=gamma, alpha=alpha, reduction=reduction, loss_weight=loss_weight)
        self.use_sigmoid = use_sigmoid
        self.gamma = gamma
        self.alpha = alpha
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
        """Return the loss in float32, [] or, with reduction `none`, [N, C].

        Args:
            pred: logits, [N, C].
            target: labels, [N]: 0..C-1 are classes, anything else is background. Or p* of every logit, [N, C].
            weight: factor of each row, [N], or of each logit, [N, C]; None: 1.
            avg_factor: what `mean` divides by, such as the number of positives.
            reduction_override: takes the place of `reduction` when given.

        Raises:
            ValueError: shapes do not fit, an unknown reduction, or `avg_factor` with `sum`.
        """
        reduction = reduction_override or self.reduction
        check_arguments(reduction=reduction)
        check_shapes(pred.shape, pred.shape[:-1], target=target, weight=weight)
        if reduction == "none":
            return self.loss_weight * self._dense(pred.float(), target, weight)
        factor = self.loss_weight / divisor(pred, reduction, avg_factor)
        if isinstance(factor, Tensor):
            factor = factor.detach().float().reshape(())
        else:
            factor = torch.full((), factor, device=pred.device)
        if target.shape == pred.shape or (weight is not None and weight.shape == pred.shape):
            return factor * self._dense(pred.float(), target, weight).sum()
        if weight is None:
            weight = torch.ones((), device=pred.device).expand(len(pred))
        return ops.focal(pred.contiguous(), target, weight, self.gamma, self.alpha, factor)

    def _dense(self, logit: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        if target.shape != logit.shape:
            target = target[..., None] == torch.arange(logit.shape[-1], device=target.device)
        target = target.float()
        probability = logit.sigmoid()
        error = probability * (1 - target) + (1 - probability) * target  # 1 - p_t
        balance = self.alpha * target + (1 - self.alpha) * (1 - target)
        entropy = functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
        loss = balance * error**self.gamma * entropy
        if weight is None:
            return loss
        return loss * (weight if weight.shape == loss.shape else weight[..., None])
