"""GHM-C, the gradient harmonised classification loss.

Shapes: N examples (anchors), C classes, L populations (FPN levels), K unit regions.
"""

from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional

from ghm.losses import ops
from ghm.losses.checks import Reduction, check_arguments, check_finite
from ghm.losses.density import classification_gradient_norm
from ghm.losses.statistics import HarmonisedLoss, Options
from ghm.losses.vectorised import CLASSIFICATION_END, MOST_BINS


class GHMC(HarmonisedLoss):
    """Binary cross entropy on logits, each example divided by the gradient density around it.

    L = (1 / N) * sum_i beta_i * L_CE(p_i, p*_i) (arXiv 1811.05181, equation 8), by unit regions. Takes the place of
    `mmdet.GHMC`: the same arguments, and state dicts load both ways. In a config of an mmdet head write
    `use_sigmoid=True`: the head reads it there and makes one logit a class, none for the background.

    The loss is computed and returned in float32 whatever the dtype of the logits; the gradient has their dtype.

    Deviation: mmdet computes in the dtype of the logits; in float16 its weights overflow and its edges are rounded.

    Args:
        bins: number of unit regions, the paper's M.
        momentum: of the moving average of the counts, in [0, 1); 0 keeps none.
        use_sigmoid: must be True.
        loss_weight: factor on the result.
        reduction: `mean` divides by the number of valid examples, `sum` does not, `none` gives [N, C].
        **options: see `ghm.losses.statistics.HarmonisedLoss`; all are off by default, and then this is mmdet's loss.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        bins: int = 10,
        momentum: float = 0,
        use_sigmoid: bool = True,
        loss_weight: float = 1.0,
        reduction: Reduction = "mean",
        **options: Unpack[Options],
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
        avg_factor: float | None = None,
        sizes: list[int] | None = None,
    ) -> Tensor:
        """Return the loss in float32, and move the average of the counts.

        Args:
            pred: logits, [N, C].
            target: labels, [N]: 0..C-1 are classes, anything else is background. Or p* of every logit, [N, C], which
                takes more time and memory.
            label_weight: of the shape of `target`; 0 or less is ignored. Above 0 its size has no effect, as in mmdet.
            reduction_override: takes the place of `reduction` when given.
            avg_factor: ignored, as in mmdet: mmdet's heads pass the number of positives, and GHM-C divides by the
                number of valid examples.
            sizes: the rows of each FPN level when `pred` holds several, in order.

        Returns:
            [] without `sizes`; with them one value a population: [L], or [1] with `statistics="batch"`. [N, C] with
            reduction `none`.

        Raises:
            ValueError: shapes do not fit, or an unknown reduction; with `check` also wrong labels and numbers.
        """
        reduction = reduction_override or self.reduction
        check_arguments(reduction=reduction)
        if target.shape not in (pred.shape, pred.shape[:-1]) or label_weight.shape != target.shape:
            raise ValueError(
                f"target and label_weight must both be of shape {tuple(pred.shape)} or {tuple(pred.shape[:-1])} "
                f"for this pred, got {tuple(target.shape)} and {tuple(label_weight.shape)}"
            )
        if self.check:
            check_finite(pred=pred, label_weight=label_weight)
            if target.shape != pred.shape:
                classes = pred.shape[-1]
                wrong = target[(target < 0) | (target > classes)].unique().tolist()
                if wrong:
                    raise ValueError(
                        f"target must hold labels in 0..{classes}, {classes} for background, got {wrong[:5]}"
                    )
            else:
                check_finite(target=target)
        rows = self.populations(sizes, len(pred))
        labelled = target.shape != pred.shape and pred.dim() == 2 and self.bins <= MOST_BINS
        if reduction == "none" or not labelled:
            loss = self._dense(pred.float(), target, label_weight, rows, reduction)
        else:
            loss = self._labelled(pred.contiguous(), target, label_weight, rows, reduction)
        return loss[0] if sizes is None and reduction != "none" else loss

    def _labelled(self, logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, rows: list[int], reduction: str) -> Tensor:
        count_LK, slot = ops.ghm_c_count(logit_NC.detach(), label_N, weight_N, rows, self.bins)
        beta_LK, total_L = self.weights(count_LK, count_LK.sum(1))
        factor_LK = self.loss_weight * (beta_LK / total_L[:, None] if reduction == "mean" else beta_LK)
        return ops.ghm_c_loss(logit_NC, label_N, weight_N, slot, rows, factor_LK)

    def _dense(self, logit: Tensor, target: Tensor, weight: Tensor, rows: list[int], reduction: str) -> Tensor:
        valid = weight > 0
        if target.shape != logit.shape:
            target = target[..., None] == torch.arange(logit.shape[-1], device=target.device)
            valid = valid[..., None].expand(logit.shape)
        target = target.float()
        norm = classification_gradient_norm(logit.detach(), target)
        total_L = torch.stack([part.sum() for part in valid.split(rows)])
        loss = functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
        return self.harmonise(loss, norm, valid, total_L, rows, reduction)
