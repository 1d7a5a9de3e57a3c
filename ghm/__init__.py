"""Gradient harmonised losses for single-stage detectors, and the pipeline that compares them."""

from ghm import mmcv_ops

mmcv_ops.install()
