"""The registries that make `type='ghm.GHMC'` work in any mmdet config. The losses themselves do not need mmengine."""

from mmengine import registry
from mmengine.registry import Registry

from ghm import losses

_SAMPLES = ["ghm.training.samples"]
MODELS = Registry("model", parent=registry.MODELS, scope="ghm", locations=["ghm.head", "ghm.norms"])
DATASETS = Registry("dataset", parent=registry.DATASETS, scope="ghm", locations=_SAMPLES)
TRANSFORMS = Registry("transform", parent=registry.TRANSFORMS, scope="ghm", locations=_SAMPLES)
FUNCTIONS = Registry("function", parent=registry.FUNCTIONS, scope="ghm", locations=_SAMPLES)

for name in losses.__all__:
    MODELS.register_module(module=getattr(losses, name))
