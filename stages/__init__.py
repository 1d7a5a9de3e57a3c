"""One script a stage of `dvc.yaml`: read the parameters, call one function of `ghm`, write the outs."""

from ghm.cli import run

__all__ = ["run"]
