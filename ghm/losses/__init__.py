"""The losses that the variants compare: GHM-C, Focal Loss and OHEM for classes, GHM-R and Smooth L1 for boxes."""

from ghm.losses.focal import FocalLoss
from ghm.losses.ghmc import GHMC
from ghm.losses.ghmr import GHMR
from ghm.losses.ohem import OHEMLoss
from ghm.losses.smooth_l1 import SmoothL1Loss

__all__ = ["GHMC", "GHMR", "FocalLoss", "OHEMLoss", "SmoothL1Loss"]
