"""Detections of trained variants (`run`), COCO's metrics (`judge`), intervals (`bootstrap`) and kinds of `errors`."""
