"""GHM-C, the gradient harmonised classification loss. Shapes: N examples (anchors), C classes, K unit regions."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ghm.losses.density import (
    check_momentum,
    check_reduction,
    classification_gradient_norm,
    harmonise,
    reduce_loss,
    region_edges,
)
from ghm.registry import MODELS


@MODELS.register_module()
class GHMC(nn.Module):
    """Binary cross entropy on logits, each example divided by the gradient density around it.

    L = (1 / N) * sum_i beta_i * L_CE(p_i, p*_i) (arXiv 1811.05181, equation 8), by unit regions. Takes the place of
    `mmdet.GHMC`: the same arguments, and state dicts load both ways. In a config of an mmdet head write
    `use_sigmoid=True`: the head reads it there and makes one logit a class, none for the background.

    The loss is computed and returned in float32 whatever the dtype of the logits.

    Deviation: mmdet computes in the dtype of the logits; in float16 its weights overflow and its edges are rounded.

    Args:
        bins: number of unit regions, the paper's M.
        momentum: of the moving average of the counts, in [0, 1); 0 keeps none.
        use_sigmoid: must be True.
        loss_weight: factor on the result.
        reduction: `mean` divides by the number of valid examples, `sum` does not, `none` gives [N, C].

    Raises:
        ValueError: an argument is out of its range.
    """

    edges: Tensor  # [K + 1], float32
    acc_sum: Tensor | None  # [K], float32; None without momentum

    def __init__(
        self,
        bins: int = 10,
        momentum: float = 0,
        use_sigmoid: bool = True,
        loss_weight: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if not use_sigmoid:
            raise ValueError(
                f"use_sigmoid must be True, got {use_sigmoid!r}: GHM-C is defined on one logit a class without a "
                "background logit; set use_sigmoid=True, or take mmdet's CrossEntropyLoss for softmax"
            )
        check_momentum(momentum)
        check_reduction(reduction)
        self.bins = bins
        self.momentum = momentum
        self.use_sigmoid = use_sigmoid
        self.loss_weight = loss_weight
        self.reduction = reduction
        self.register_buffer("edges", region_edges(bins, end=1 + 1e-6))
        self.register_buffer("acc_sum", torch.zeros(bins) if momentum > 0 else None)

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        label_weight: Tensor,
        reduction_override: str | None = None,
        *,
        avg_factor: float | None = None,
    ) -> Tensor:
        """Return the loss in float32, [] or [N, C], and move the average of the counts.

        Args:
            pred: logits, [N, C].
            target: labels, [N]: 0..C-1 are classes, anything else is background. Or p* of every logit, [N, C].
            label_weight: of the shape of `target`; 0 or less is ignored. Above 0 its size has no effect, as in mmdet.
            reduction_override: takes the place of `reduction` when given.
            avg_factor: ignored, as in mmdet: mmdet's heads pass the number of positives, and GHM-C divides by the
                number of valid examples.

        Raises:
            ValueError: shapes do not fit, or an unknown reduction.
        """
        logit_NC = pred.float()
        target_NC, valid_NC = _targets(target, label_weight, shape_NC=pred.shape)
        total = valid_NC.sum().clamp(min=1)
        with torch.no_grad():
            norm_NC = classification_gradient_norm(logit_NC, target_NC)
            weight_NC, density_K = harmonise(
                norm_NC, valid_NC, total, self.acc_sum, edge_E=self.edges, momentum=self.momentum
            )
            if self.acc_sum is not None:
                self.acc_sum.copy_(density_K)
        loss_NC = functional.binary_cross_entropy_with_logits(logit_NC, target_NC, reduction="none")
        reduction = reduction_override or self.reduction
        return self.loss_weight * reduce_loss(loss_NC, weight_NC, total, reduction=reduction)


def _targets(target: Tensor, label_weight: Tensor, *, shape_NC: torch.Size) -> tuple[Tensor, Tensor]:
    """p* in float32 and what is valid, both [N, C], from labels [N] or from p* [N, C]."""
    if target.shape not in (shape_NC, shape_NC[:-1]) or label_weight.shape != target.shape:
        raise ValueError(
            f"target and label_weight must both be of shape {tuple(shape_NC)} or {tuple(shape_NC[:-1])} "
            f"for this pred, got {tuple(target.shape)} and {tuple(label_weight.shape)}"
        )
    valid = label_weight > 0
    if target.shape != shape_NC:
        target = target[..., None] == torch.arange(shape_NC[-1], device=target.device)
        valid = valid[..., None].expand(shape_NC)
    return target.float(), valid
