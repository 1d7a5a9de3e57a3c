"""Train one variant with one seed, stopped and gone on with as often as need be, on one device or many.

`run` is the door. `loop` takes the steps and `samples` feeds it; `state` keeps what a stopped training goes on from,
under a key of `shape`; `processes` are the devices; `guards`, `progress` and `validation` watch.
"""

from ghm.training.run import STATE, build_config, context, train

__all__ = ["STATE", "build_config", "context", "train"]
