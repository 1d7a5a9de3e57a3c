"""GHM-R, the gradient harmonised box regression loss. Shapes: N examples (anchors), D coordinates, K unit regions."""

import torch
from torch import Tensor, nn

from ghm.losses.density import (
    check_momentum,
    check_reduction,
    harmonise,
    reduce_loss,
    region_edges,
    regression_gradient_norm,
)
from ghm.registry import MODELS


@MODELS.register_module()
class GHMR(nn.Module):
    """Authentic smooth L1, each coordinate divided by the gradient density around it.

    L = (1 / N) * sum_i beta_i * ASL1(d_i) with ASL1(d) = sqrt(d^2 + mu^2) - mu (arXiv 1811.05181, section "GHM-R
    Loss"), by unit regions. Takes the place of `mmdet.GHMR`: the same arguments, and state dicts load both ways.

    The loss is computed and returned in float32 whatever the dtype of the prediction.

    Deviation: mmdet computes in the dtype of the prediction; in float16 its weights overflow and its edges are rounded.

    Args:
        mu: half-width of the quadratic part, in units of the box targets, greater than 0.
        bins: number of unit regions, the paper's M.
        momentum: of the moving average of the counts, in [0, 1); 0 keeps none.
        loss_weight: factor on the result.
        reduction: `mean` divides by the sum of the weights, at least 1; `sum` does not; `none` gives [N, D].

    Raises:
        ValueError: an argument is out of its range.
    """

    edges: Tensor  # [K + 1], float32
    acc_sum: Tensor | None  # [K], float32; None without momentum

    def __init__(
        self,
        mu: float = 0.02,
        bins: int = 10,
        momentum: float = 0,
        loss_weight: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if not mu > 0:
            raise ValueError(f"mu must be greater than 0, got {mu!r}")
        check_momentum(momentum)
        check_reduction(reduction)
        self.mu = mu
        self.bins = bins
        self.momentum = momentum
        self.loss_weight = loss_weight
        self.reduction = reduction
        # Any end above 1 holds the same examples; mmdet's, so that state dicts agree.
        self.register_buffer("edges", region_edges(bins, end=1e3))
        self.register_buffer("acc_sum", torch.zeros(bins) if momentum > 0 else None)

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        label_weight: Tensor,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Return the loss in float32, [] or [N, D], and move the average of the counts.

        Args:
            pred: predicted coordinates, [N, D].
            target: [N, D].
            label_weight: [N, D]; 0 or less is ignored. In `mean` the size above 0 cancels out, as in mmdet.
            avg_factor: ignored, as in mmdet: mmdet's heads pass the number of positives, and GHM-R divides by the sum
                of the weights.
            reduction_override: takes the place of `reduction` when given.

        Raises:
            ValueError: shapes do not fit, or an unknown reduction.
        """
        if not pred.shape == target.shape == label_weight.shape:
            raise ValueError(
                "pred, target and label_weight must be of one shape, "
                f"got {tuple(pred.shape)}, {tuple(target.shape)} and {tuple(label_weight.shape)}"
            )
        difference_ND = pred.float() - target.float()
        total = label_weight.float().sum().clamp(min=1)
        with torch.no_grad():
            norm_ND = regression_gradient_norm(difference_ND, mu=self.mu)
            weight_ND, density_K = harmonise(
                norm_ND, label_weight > 0, total, self.acc_sum, edge_E=self.edges, momentum=self.momentum
            )
            if self.acc_sum is not None:
                self.acc_sum.copy_(density_K)
        loss_ND = (difference_ND * difference_ND + self.mu * self.mu).sqrt() - self.mu
        reduction = reduction_override or self.reduction
        return self.loss_weight * reduce_loss(loss_ND, weight_ND, total, reduction=reduction)
