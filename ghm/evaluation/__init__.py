"""Detections of trained variants (`run`), COCO's metrics (`judge`) and their intervals (`bootstrap`)."""
