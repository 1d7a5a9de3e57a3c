"""The registries that make `type='ghm.GHMC'` work in any mmdet config."""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry("model", parent=MMENGINE_MODELS, scope="ghm", locations=["ghm.losses", "ghm.head"])
HOOKS = Registry("hook", parent=MMENGINE_HOOKS, scope="ghm", locations=["ghm.gradient_norms"])
