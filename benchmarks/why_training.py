"""One epoch of the default with any loss for classes, for `benchmarks/why.py`.

Shapes: N anchors of a batch, C classes, W weights of the network.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.why_measures import BINS, MOMENTUM
from ghm import config, params
from ghm.head import Examples
from ghm.registry import MODELS
from ghm.training import batches
from ghm.training.batches import Batch
from ghm.training.engine import Engine
from ghm.training.processes import Processes
from ghm.training.validation import ValidationSample

GHM = {"bins": BINS, "momentum": MOMENTUM}
LOSSES: dict[str, dict[str, Any]] = {
    "FL": {"type": "ghm.FocalLoss"},
    "CE": {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": True},
    "GHM-C": {"type": "ghm.GHMC", **GHM},
    "GHM-C + 100": {"type": "ghm.GHMC", **GHM, "smoothing": 100.0},
    "GHM-C + positives": {"type": "ghm.GHMC", **GHM, "smoothing": "positives"},
}
TRAINED = ("FL", "GHM-C", "GHM-C + 100", "GHM-C + positives")  # the losses of trainings that are looked at


class Training:
    """One epoch of the default with any loss for classes, by the project's own engine.

    Args:
        changes: of the section `train`.
    """

    def __init__(self, loss: nn.Module, seed: int, **changes: Any) -> None:
        parameters = params.load()
        parameters = replace(parameters, train=replace(parameters.train, epochs=1, **changes))
        self.cfg = config.for_run(parameters, "ghmc_sl1", seed)
        self.engine = Engine(self.cfg, Processes(), begins=True)
        self.engine.model.train()
        self.head = self.engine.detector.bbox_head
        self.head.loss_cls = loss
        self.loader = batches.loader(self.cfg, Processes())

    def steps(self, epoch: int = 0) -> Iterator[tuple[int, Batch]]:
        """The batches of an epoch, in its order."""
        self.loader.batch_sampler.start(epoch, 0)
        yield from enumerate(tqdm(self.loader, leave=False))

    def step(self, number: int, batch: Batch) -> None:
        self.engine.step([batch], config.learning_rate(self.cfg.schedule, number), [])

    def finish(self) -> float:
        """Take all steps. Returns AP on the whole validation split; NaN if a step was not finite."""
        for number, batch in self.steps():
            self.step(number, batch)
        return float("nan") if bool(self.engine.spoilt) else self.ap()

    def ap(self) -> float:
        """AP on the whole validation split."""
        assert not bool(self.engine.spoilt), "a step was not finite"
        self.cfg.validation.images = 10**9
        self.engine.detector.eval()
        return ValidationSample(self.cfg)(self.engine.detector)

    def gradients(self, batch: Batch, losses: dict[str, Any]) -> tuple[Examples, dict[str, tuple[Tensor, Tensor]]]:
        """Of every loss, and of boxes, by the logits, [N, C], and the weights, [W]. Nothing of the training moves."""
        detector, own = self.engine.detector, self.head.loss_cls
        buffers = {name: value.clone() for name, value in detector.backbone.named_buffers()}
        image_B3HW, truth = batches.prepare(detector, batch)
        examples, positives = self.head.examples(*self.head(detector.extract_feat(image_B3HW)), truth)
        inputs, found = [examples.logit_NC, *self.engine.weights.values()], {}
        for name, loss in losses.items():
            self.head.loss_cls = loss
            terms = self.head._losses(examples, positives)
            for kind, of in {"loss_cls": name, "loss_bbox": "boxes"}.items():
                if of not in found:
                    by = torch.autograd.grad(
                        torch.stack(terms[kind]).sum(),
                        inputs,
                        retain_graph=True,
                        allow_unused=True,
                        materialize_grads=True,
                    )
                    found[of] = (by[0], torch.cat([each.flatten() for each in by[1:]]))
        self.head.loss_cls = own
        for name, value in detector.backbone.named_buffers():
            value.copy_(buffers[name])
        return examples, found

    def shared(self) -> Tensor:
        """Which weights both branches share: those of backbone and neck. [W]"""
        parts = [
            torch.full((weight.numel(),), not name.startswith("bbox_head."))
            for name, weight in self.engine.weights.items()
        ]
        return torch.cat(parts)


def built() -> dict[str, Any]:
    return {name: MODELS.build(settings) for name, settings in LOSSES.items()}
