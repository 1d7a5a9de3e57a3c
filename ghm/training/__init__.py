"""Train one variant with one seed, stopped and gone on with as often as need be, on one device or many.

`run` is the door. `engine` builds the model, `loop` takes the steps and `samples` feeds it; `state` keeps what a
stopped run goes on from, under the key of its fingerprint; `processes` are the devices; `guards`, `progress` and
`validation` watch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghm.config import for_run as build_config
    from ghm.training.run import train

__all__ = ["build_config", "train"]


def __getattr__(name: str) -> Any:
    """Import the whole room only for who trains: others take `samples` or `processes` alone."""
    if name == "train":
        from ghm.training.run import train

        return train
    if name == "build_config":
        from ghm.config import for_run

        return for_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
