"""What GHM-C and GHM-R share as modules: options, the moving average between steps, counts of all processes.

Shapes: N examples, L populations, K unit regions.
"""

from collections.abc import Callable
from inspect import Parameter, Signature, signature

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import pad

from ghm.losses import ops
from ghm.losses.checks import Normalizer, Reduction, Smoothing, Statistics, check_arguments
from ghm.losses.density import moving_averages, region_counts, region_edges, region_index, region_weights


class HarmonisedLoss(nn.Module):
    """The statistics behind a loss whose examples are divided by the density of their gradient norms.

    The loss is computed and returned in float32 whatever the dtype of the prediction; the gradient has its dtype.
    State dicts load both ways between these losses and mmdet's, and without the options their values are mmdet's.

    Deviation: mmdet computes in the dtype of the prediction; in float16 its weights overflow and its edges are rounded.

    Args:
        bins: number of unit regions, the paper's M.
        momentum: of the moving average of the counts, in [0, 1); 0 keeps none.
        loss_weight: factor on the result.
        reduction: `mean` divides by N, `sum` does not, `none` gives the loss of each value of the prediction.
        end: the last edge, see `region_edges`.
        statistics: `level`: each population of a call (in `ghm.head.GHMRetinaHead` an FPN level) has a density of its
            own, and moves the shared average in turn, as in the reference code. `batch`: all of a call have one, as
            in the paper's text.
        sync: count over all processes of `torch.distributed`, so that the statistics do not depend on how many share
            the batch. `mean` is then scaled so that the mean over processes, which is what
            `DistributedDataParallel` makes of gradients, is the loss of the whole batch.
        bias_correction: divide the moving average by 1 - momentum^t, t the number of steps in which the region was
            occupied. Without it a region's first weights are 1 / (1 - momentum) too large.
        normalizer: `valid_bins`: the density counts occupied regions, as in the reference code. `bins`: all of them,
            as in the paper's equation; the loss is then smaller by occupied / bins.
        smoothing: pseudo-count added to the density of every occupied region, 0 or more. `positives`: as many as there
            are positive examples, at least 1: `avg_factor`, or else those of the call, in all its populations together.
            Then no example weighs more than 1 / (P M) in the mean, and the loss does not change where every example is
            there twice.

    Raises:
        ValueError: an argument is out of its range.

    Of a call of either loss:

    Args:
        label_weight: 0 or less marks what is ignored.
        avg_factor: the number of positives, which mmdet's heads pass to every loss. These divide by N all the same, as
            in mmdet; it is read with smoothing `positives` alone.
        reduction_override: takes the place of `reduction` when given.
        sizes: the rows of each FPN level when `pred` holds several, in order.

    Returns:
        [] without `sizes`; with them one value a population: [L], or [1] with `statistics="batch"`. With reduction
        `none` of the shape of `pred`. The average of the counts has moved.

    Raises:
        ValueError: shapes do not fit, or an unknown reduction.
    """

    edges: Tensor  # [K + 1], float32; kept for mmdet's state dicts
    acc_sum: Tensor | None  # [K], float32: the moving average of the counts; None without momentum
    # [K], float32: the share 1 - momentum^t of `acc_sum` that does not come from its start at zero; None without
    # bias correction.
    acc_mass: Tensor | None

    def __init__(
        self,
        bins: int,
        momentum: float,
        loss_weight: float,
        reduction: Reduction,
        end: float,
        *,
        statistics: Statistics = "level",
        sync: bool = False,
        bias_correction: bool = False,
        normalizer: Normalizer = "valid_bins",
        smoothing: Smoothing = 0.0,
    ) -> None:
        super().__init__()
        check_arguments(bins=bins, momentum=momentum, loss_weight=loss_weight, reduction=reduction)
        check_arguments(statistics=statistics, sync=sync, bias_correction=bias_correction)
        check_arguments(normalizer=normalizer, smoothing=smoothing)
        if bias_correction and momentum == 0:
            raise ValueError("bias_correction must be False with momentum 0, got True: there is no average to correct")
        self.bins = bins
        self.momentum = momentum
        self.loss_weight = loss_weight
        self.reduction: Reduction = reduction
        self.statistics = statistics
        self.sync = sync
        self.bias_correction = bias_correction
        self.normalizer = normalizer
        self.smoothing: Smoothing = smoothing
        self.register_buffer("edges", region_edges(bins, end=end))
        self.register_buffer("acc_sum", torch.zeros(bins) if momentum > 0 else None)
        self.register_buffer("acc_mass", torch.zeros(bins) if bias_correction else None)

    own_statistics = False  # whether a subclass has some, which compiled code does not know

    def __init_subclass__(cls) -> None:
        """Spell the options out in the signature of a loss that passes them on as `**options`."""
        cls.own_statistics |= not vars(cls).keys().isdisjoint({"weights", "_beta", "_average"})
        named = [p for p in signature(cls.__init__).parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
        options = [p for p in signature(HarmonisedLoss).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
        cls.__signature__ = Signature([*named[1:], *options])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HarmonisedLoss":
        """Move to a device, but stay float32: counts overflow float16, and bfloat16 cannot add one to 256."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            setattr(self, name, buffer.to(device=getattr(self, name).device))
        return self

    def populations(self, sizes: list[int] | None, rows: int) -> list[int]:
        """The sizes of the populations of a call with `rows` examples: by `statistics`, one a level or one for all.

        Raises:
            ValueError: the sizes do not add up.
        """
        if sizes is None or self.statistics == "batch":
            sizes = [rows] if sizes is None else [sum(sizes)]
        if sum(sizes) != rows:
            raise ValueError(f"sizes must add up to the {rows} examples, got {sizes}")
        return sizes

    @torch.no_grad()
    def weights(
        self, count_LK: Tensor, total_L: Tensor | None, positives: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Move the average by the counts of every population in turn, and weigh the regions.

        Args:
            count_LK: examples of each region, int64.
            total_L: of valid examples, or the sum of their weights; None: as many as are counted.
            positives: how many examples are positive, at least 1, float32, []; read with smoothing `positives`.

        Returns:
            beta of each region, [L, K], and N of each population, at least 1 and over all
            processes with `sync`, [L].
        """
        world = self._gather(count_LK, total_L, positives)
        total_L = (count_LK.sum(1) if total_L is None else total_L).clamp(min=1)
        return self._beta(count_LK, total_L, positives), total_L if world == 1 else total_L / world

    def _beta(self, count_LK: Tensor, total_L: Tensor, positives: Tensor | None) -> Tensor:
        density_LK = count_LK if self.acc_sum is None else self._average(self.acc_sum, count_LK)
        options = {"normalizer": self.normalizer, "smoothing": self._pseudo_count(positives)}
        return region_weights(density_LK, count_LK, total_L, **options)

    def positives(
        self, avg_factor: float | Tensor | None, counted: Callable[[], Tensor], device: torch.device
    ) -> Tensor | None:
        """How many examples are positive, at least 1: float32, []. None where no smoothing asks for that.

        Args:
            counted: called where the caller of the loss has not said how many.
        """
        if self.smoothing != "positives":
            return None
        number = counted() if avg_factor is None else avg_factor
        if not isinstance(number, Tensor):
            return torch.full((), max(1.0, number), device=device)
        return number.detach().float().clamp(min=1)

    def _pseudo_count(self, positives: Tensor | None) -> float | Tensor:
        if self.smoothing != "positives":
            return self.smoothing
        assert positives is not None, "a loss counts its positives where smoothing asks for them"
        return positives

    def _gather(self, *numbers: Tensor | None) -> int:
        """With `sync` add up what all processes have counted, in place. The number of processes that share it."""
        if not (self.sync and distributed.is_available() and distributed.is_initialized()):
            return 1
        for number in numbers:
            if number is not None:
                distributed.all_reduce(number)
        return distributed.get_world_size()

    def _average(self, average_K: Tensor, count_LK: Tensor) -> Tensor:
        """What stands for the density in each region of each population, [L, K]; the buffers hold the last."""
        moved = moving_averages(average_K, count_LK, momentum=self.momentum)
        density_LK = torch.stack(moved)
        average_K.copy_(moved[-1])
        if self.acc_mass is None:
            return density_LK
        masses = moving_averages(self.acc_mass, count_LK > 0, momentum=self.momentum)
        self.acc_mass.copy_(masses[-1])
        return density_LK / torch.stack(masses).clamp(min=1 - self.momentum)

    def factors(
        self, count_LK: Tensor, total_L: Tensor | None, reduction: Reduction, positives: Tensor | None = None
    ) -> Tensor:
        """What the loss of an example of each region is multiplied with in the sum, `mean` or `sum`. [L, K]

        Arguments are those of `weights`, which the average moves in, too. In `mean` N cancels out, whatever it is.
        """
        plain = self.own_statistics or not ops.is_eager(count_LK)
        compiled = None if plain else ops.compiled(count_LK, "kernel_statistics")
        if compiled:
            world = self._gather(count_LK, total_L, positives)
            settings = {"momentum": self.momentum, "loss_weight": self.loss_weight}
            settings |= {"smoothing": self._pseudo_count(positives)}
            which = {"valid": self.normalizer == "valid_bins", "mean": reduction == "mean"}
            averages = (self.acc_sum, self.acc_mass)
            return compiled.factors(count_LK, total_L, *averages, world=world, **settings, **which)
        with torch.no_grad():
            if reduction == "mean":
                scale = float(self._gather(count_LK, positives)) * self.loss_weight
                return self._beta(count_LK, torch.full((), scale, device=count_LK.device), positives)
            return self.loss_weight * self.weights(count_LK, total_L, positives)[0]

    def harmonise(
        self,
        loss: Tensor,
        norm: Tensor,
        valid: Tensor,
        total_L: Tensor,
        rows: list[int],
        reduction: Reduction,
        positives: Tensor | None,
    ) -> Tensor:
        """Weigh the loss of every example by the density of its region, and reduce: [L], or as `loss` with `none`.

        `loss`, `norm` and `valid` are of every example and of one shape; `rows` are the sizes of the populations;
        `positives` as in `weights`.
        """
        index = region_index(norm, valid, edge_E=self.edges)
        count_LK = torch.stack([region_counts(part, bins=self.bins) for part in index.split(rows)])
        beta_LK, total_L = self.weights(count_LK, total_L, positives)
        beta_LK = pad(self.loss_weight * beta_LK, (0, 1))
        beta = torch.cat([beta_K[part] for beta_K, part in zip(beta_LK, index.split(rows), strict=True)])
        if reduction == "none":
            return loss * beta
        loss_L = torch.stack([part.sum() for part in (loss * beta).split(rows)])
        return loss_L / total_L if reduction == "mean" else loss_L
