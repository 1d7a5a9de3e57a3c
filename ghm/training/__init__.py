"""Train one variant with one seed, stopped and gone on with as often as need be, on one device or many.

`train` is the door. `engine` builds the model and moves its weights, `loop` takes the steps and `samples` feeds it;
`state` keeps what a stopped run goes on from, under the key of its fingerprint; `processes` are the devices; `guards`,
`progress` and `validation` watch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghm.training.run import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    """Import the whole room only for who trains: others take `samples` or `processes` alone."""
    if name == "train":
        from ghm.training.run import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
