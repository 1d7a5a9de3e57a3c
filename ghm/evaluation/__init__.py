"""Trained variant -> detections (`run`) -> COCO metrics (`judge`), their intervals (`bootstrap`), kinds of `errors`.

Nothing is imported here: the report needs the intervals, and not the detector.
"""
