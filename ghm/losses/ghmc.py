"""GHM-C, the gradient harmonised classification loss.

Shapes: N examples (anchors), C classes, L populations (FPN levels), K unit regions.
"""

from functools import partial
from typing import Any

import torch
from torch import Size, Tensor
from torch.nn import functional

from ghm.losses import ops
from ghm.losses.checks import Reduction, check_arguments, check_shapes
from ghm.losses.density import classification_gradient_norm
from ghm.losses.slots import CLASSIFICATION_END, MOST_BINS
from ghm.losses.statistics import HarmonisedLoss


class GHMC(HarmonisedLoss):
    """Binary cross entropy on logits, each example divided by the gradient density around it.

    L = (1 / N) * sum_i beta_i * L_CE(p_i, p*_i) (arXiv 1811.05181, equation 8), by unit regions; N is the number of
    valid examples. Takes the place of `mmdet.GHMC`, with its arguments and the options of
    `ghm.losses.statistics.HarmonisedLoss`, which describes both. In a config of an mmdet head write
    `use_sigmoid=True`: the head reads it there and makes one logit a class, none for the background.
    """

    def __init__(
        self,
        bins: int = 10,
        momentum: float = 0,
        use_sigmoid: bool = True,
        loss_weight: float = 1.0,
        reduction: Reduction = "mean",
        **options: Any,
    ) -> None:
        check_arguments(use_sigmoid=use_sigmoid)
        super().__init__(bins, momentum, loss_weight, reduction, CLASSIFICATION_END, **options)
        self.use_sigmoid = use_sigmoid

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        label_weight: Tensor,
        reduction_override: Reduction | None = None,
        *,
        avg_factor: float | Tensor | None = None,
        sizes: list[int] | None = None,
    ) -> Tensor:
        """Return the loss in float32. Other arguments, results and errors: see `HarmonisedLoss`.

        Args:
            pred: logits, [N, C].
            target: labels, [N]: 0..C-1 are classes, anything else is background. Or p* of every logit, [N, C], which
                takes more time and memory.
            label_weight: of the shape of `target`; 0 or less is ignored. Above 0 its size has no effect, as in mmdet.
        """
        if reduction_override:
            check_arguments(reduction=reduction_override)
        reduction = reduction_override or self.reduction
        check_shapes(pred.shape, pred.shape[:-1], target=target)
        check_shapes(target.shape, label_weight=label_weight)
        rows = self.populations(sizes, len(pred))
        positives = self.positives(avg_factor, partial(_positives, pred.shape, target, label_weight), pred.device)
        labelled = target.shape != pred.shape and pred.dim() == 2 and self.bins <= MOST_BINS
        if reduction == "none" or not labelled:
            loss = self._dense(pred.float(), target, label_weight, rows, reduction, positives)
            return loss.view(()) if sizes is None and reduction != "none" else loss
        pred = pred.contiguous()
        count_LK, slot = ops.ghm_c_count(pred.detach(), target, label_weight, rows, self.bins)
        factor_LK = self.factors(count_LK, None, reduction, positives)
        return ops.ghm_c(pred, target, label_weight, slot, rows, factor_LK, scalar=sizes is None)

    def _dense(
        self,
        logit: Tensor,
        target: Tensor,
        weight: Tensor,
        rows: list[int],
        reduction: Reduction,
        positives: Tensor | None,
    ) -> Tensor:
        valid = weight > 0
        if target.shape != logit.shape:
            target = target[..., None] == torch.arange(logit.shape[-1], device=target.device)
            valid = valid[..., None].expand(logit.shape)
        target = target.float()
        norm = classification_gradient_norm(logit.detach(), target)
        total_L = torch.stack([part.sum() for part in valid.split(rows)])
        loss = functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
        return self.harmonise(loss, norm, valid, total_L, rows, reduction, positives)


def _positives(shape: Size, target: Tensor, weight: Tensor) -> Tensor:
    """How many rows of logits of a shape are of a class and not ignored, []."""
    if target.shape == shape:
        return ((target > 0.5) & (weight > 0)).view(-1, shape[-1]).any(-1).sum()
    return ((target >= 0) & (target < shape[-1]) & (weight > 0)).sum()
