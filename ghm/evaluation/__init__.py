"""Detections of trained variants (`run`), metrics (`judge`), intervals (`bootstrap`), `outcome` and `errors` by kind."""
