"""Train one variant with one seed, stopped and gone on with as often as need be, on one device or many.

`run` is the door. `engine` builds the model, `loop` takes the steps and `samples` feeds it; `state` keeps what a
stopped run goes on from, under the key of its fingerprint; `processes` are the devices; `guards`, `progress` and
`validation` watch.
"""

from ghm.training.run import build_config, train

__all__ = ["build_config", "train"]
