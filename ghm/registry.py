"""The registries that make `type='ghm.GHMC'` work in any mmdet config. The losses themselves do not need mmengine."""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

from ghm import losses

MODELS = Registry("model", parent=MMENGINE_MODELS, scope="ghm", locations=["ghm.head"])
HOOKS = Registry("hook", parent=MMENGINE_HOOKS, scope="ghm", locations=["ghm.gradient_norms"])

for name in losses.__all__:
    MODELS.register_module(module=getattr(losses, name))
