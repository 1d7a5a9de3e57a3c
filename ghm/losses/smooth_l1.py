"""Smooth L1 by PyTorch's fused operator. Shapes: N examples (anchors), D coordinates."""

from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from ghm.losses.checks import Reduction, check_arguments


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

        Args:
            pred, target: [N, D].
            weight: factor of each coordinate, [N, D]; None: 1.
            avg_factor: what `mean` divides by, such as the number of positives.
            reduction_override: takes the place of `reduction` when given.

        Raises:
            ValueError: shapes do not fit, an unknown reduction, or `avg_factor` with `sum`.
        """
        reduction = reduction_override or self.reduction
        check_arguments(reduction=reduction)
        if pred.shape != target.shape or (weight is not None and weight.shape != pred.shape):
            shapes = [tuple(tensor.shape) for tensor in (pred, target, weight) if tensor is not None]
            raise ValueError(f"pred, target and weight must be of one shape, got {', '.join(map(str, shapes))}")
        if reduction == "sum" and avg_factor is not None:
            raise ValueError(f"avg_factor must be None with reduction sum, got {avg_factor!r}")
        loss = smooth_l1_loss(pred.float(), target.float(), beta=self.beta, reduction="none")
        if weight is not None:
            loss = loss * weight
        if reduction == "none":
            return self.loss_weight * loss
        total = 1 if reduction == "sum" else max(pred.numel(), 1) if avg_factor is None else avg_factor
        return self.loss_weight * loss.sum() / total
