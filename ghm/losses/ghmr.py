"""GHM-R, the gradient harmonised box regression loss.

Shapes: N examples (anchors), D coordinates, L populations (FPN levels), K unit regions.
"""

from typing import Unpack

import torch
from torch import Tensor

from ghm.losses import ops
from ghm.losses.checks import Reduction, check_arguments, check_finite
from ghm.losses.density import regression_gradient_norm
from ghm.losses.statistics import HarmonisedLoss, Options


class GHMR(HarmonisedLoss):
    """Authentic smooth L1, each coordinate divided by the gradient density around it.

    L = (1 / N) * sum_i beta_i * ASL1(d_i) with ASL1(d) = sqrt(d^2 + mu^2) - mu (arXiv 1811.05181, section "GHM-R
    Loss"), by unit regions. Takes the place of `mmdet.GHMR`: the same arguments, and state dicts load both ways.

    The loss is computed and returned in float32 whatever the dtype of the prediction; the gradient has its dtype.

    Deviation: mmdet computes in the dtype of the prediction; in float16 its weights overflow and its edges are rounded.

    Args:
        mu: half-width of the quadratic part, in units of the box targets, greater than 0.
        bins: number of unit regions, the paper's M.
        momentum: of the moving average of the counts, in [0, 1); 0 keeps none.
        loss_weight: factor on the result.
        reduction: `mean` divides by the sum of the weights, at least 1; `sum` does not; `none` gives [N, D].
        **options: see `ghm.losses.statistics.HarmonisedLoss`; all are off by default, and then this is mmdet's loss.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        mu: float = 0.02,
        bins: int = 10,
        momentum: float = 0,
        loss_weight: float = 1.0,
        reduction: Reduction = "mean",
        **options: Unpack[Options],
    ) -> None:
        check_arguments(mu=mu)
        # Any end above 1 holds the same examples; this is mmdet's, so that state dicts agree.
        super().__init__(bins, momentum, loss_weight, reduction, 1e3, **options)
        self.mu = mu

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        label_weight: Tensor,
        avg_factor: float | None = None,
        reduction_override: Reduction | None = None,
        *,
        sizes: list[int] | None = None,
    ) -> Tensor:
        """Return the loss in float32, and move the average of the counts.

        Args:
            pred: predicted coordinates, [N, D].
            target: [N, D].
            label_weight: [N, D]; 0 or less is ignored. In `mean` the size above 0 cancels out, as in mmdet.
            avg_factor: ignored, as in mmdet: mmdet's heads pass the number of positives, and GHM-R divides by the sum
                of the weights.
            reduction_override: takes the place of `reduction` when given.
            sizes: the rows of each FPN level when `pred` holds several, in order.

        Returns:
            [] without `sizes`; with them one value a population: [L], or [1] with `statistics="batch"`. [N, D] with
            reduction `none`.

        Raises:
            ValueError: shapes do not fit, or an unknown reduction; with `check` also numbers that are not finite.
        """
        reduction = reduction_override or self.reduction
        check_arguments(reduction=reduction)
        if not pred.shape == target.shape == label_weight.shape:
            raise ValueError(
                "pred, target and label_weight must be of one shape, "
                f"got {tuple(pred.shape)}, {tuple(target.shape)} and {tuple(label_weight.shape)}"
            )
        if self.check:
            check_finite(pred=pred, target=target, label_weight=label_weight)
        rows = self.populations(sizes, len(pred))
        total_L = torch.stack([part.float().sum() for part in label_weight.split(rows)])
        if ops.uses_kernels(pred) and pred.dim() == 2 and reduction != "none":
            inputs = (pred.contiguous(), target.contiguous(), label_weight.contiguous())
            count_LK = ops.ghm_r_count(*(tensor.detach() for tensor in inputs), rows, self.bins, self.mu)
            beta_LK, total_L = self.weights(count_LK, total_L)
            factor_LK = self.loss_weight * (beta_LK / total_L[:, None] if reduction == "mean" else beta_LK)
            loss = ops.ghm_r_loss(*inputs, rows, factor_LK, self.mu)
        else:
            difference = pred.float() - target.float()
            norm = regression_gradient_norm(difference.detach(), mu=self.mu)
            asl1 = (difference * difference + self.mu * self.mu).sqrt() - self.mu
            loss = self.harmonise(asl1, norm, label_weight > 0, total_L, rows, reduction)
        return loss[0] if sizes is None and reduction != "none" else loss
