"""The gradient harmonised losses: GHM-C for classes, GHM-R for boxes."""

from ghm.losses.ghmc import GHMC
from ghm.losses.ghmr import GHMR

__all__ = ["GHMC", "GHMR"]
