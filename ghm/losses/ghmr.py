"""GHM-R, the gradient harmonised box regression loss.

Shapes: N examples (anchors), D coordinates, L populations (FPN levels), K unit regions.
"""

from typing import Any

import torch
from torch import Tensor

from ghm.losses import ops, vectorised
from ghm.losses.checks import Reduction, check_arguments, check_shapes
from ghm.losses.density import regression_gradient_norm
from ghm.losses.statistics import HarmonisedLoss


class GHMR(HarmonisedLoss):
    """Authentic smooth L1, each coordinate divided by the gradient density around it.

    L = (1 / N) * sum_i beta_i * ASL1(d_i) with ASL1(d) = sqrt(d^2 + mu^2) - mu (arXiv 1811.05181, section "GHM-R
    Loss"), by unit regions; N is the sum of the weights, at least 1. Takes the place of `mmdet.GHMR`, with its
    arguments and the options of `ghm.losses.statistics.HarmonisedLoss`, which describes both.

    Args:
        mu: half-width of the quadratic part, in units of the box targets, greater than 0.
    """

    def __init__(
        self,
        mu: float = 0.02,
        bins: int = 10,
        momentum: float = 0,
        loss_weight: float = 1.0,
        reduction: Reduction = "mean",
        **options: Any,
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
        avg_factor: float | Tensor | None = None,
        reduction_override: Reduction | None = None,
        *,
        sizes: list[int] | None = None,
    ) -> Tensor:
        """Return the loss in float32. Other arguments, results and errors: see `HarmonisedLoss`.

        Args:
            pred: predicted coordinates, [N, D].
            target: [N, D].
            label_weight: [N, D]; 0 or less is ignored. In `mean` the size above 0 cancels out, as in mmdet.
        """
        if reduction_override:
            check_arguments(reduction=reduction_override)
        reduction = reduction_override or self.reduction
        check_shapes(pred.shape, target=target, label_weight=label_weight)
        rows = self.populations(sizes, len(pred))
        everything = pred.detach()
        few_R = None if reduction == "none" else vectorised.few_rows(label_weight)
        if few_R is not None:  # in training, those of positive anchors
            rows = vectorised.sizes_of_rows(few_R, rows)
            pred, target, label_weight = (part.index_select(0, few_R) for part in (pred, target, label_weight))

        positives = self.positives(avg_factor, lambda: (label_weight > 0).any(-1).sum(), pred.device)

        def total() -> Tensor:
            return torch.stack([part.sum(dtype=torch.float32) for part in label_weight.split(rows)])

        if pred.dim() == 2 and reduction != "none":
            pred = pred.contiguous()  # the gradient has its layout
            count_LK, slot = ops.ghm_r_count(pred.detach(), target, label_weight, rows, self.bins, self.mu)
            number = None if reduction == "mean" else total()
            factor_LK = self.factors(count_LK, number, reduction, positives)
            loss = ops.ghm_r(pred, target, label_weight, slot, rows, factor_LK, self.mu, scalar=sizes is None)
        else:
            difference = pred.float() - target.float()
            norm = regression_gradient_norm(difference.detach(), mu=self.mu)
            asl1 = (difference * difference + self.mu * self.mu).sqrt() - self.mu
            loss = self.harmonise(asl1, norm, label_weight > 0, total(), rows, reduction, positives)
            loss = loss.view(()) if sizes is None and reduction != "none" else loss
        if few_R is not None:
            loss = loss + 0 * everything.sum(dtype=torch.float32)  # NaN where any prediction is, like a sum over all
        return loss
