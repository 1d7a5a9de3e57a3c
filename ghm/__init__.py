"""Gradient harmonised losses for single-stage detectors, and the pipeline that compares them.

`import ghm` imports no other package. It is what a config names in `custom_imports`: from then on mmdet runs without
mmcv's compiled extension, and mmengine finds `ghm.registry`, and with it the losses, at the first `type="ghm. ..."`.
"""

from ghm import mmcv_ops

__version__ = "1.0.0"

mmcv_ops.install()
