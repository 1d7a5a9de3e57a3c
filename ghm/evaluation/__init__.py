"""Detections of trained variants (`run`), metrics (`judge`), intervals (`bootstrap`), and one score's `outcome`."""
