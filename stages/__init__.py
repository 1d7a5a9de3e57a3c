"""One script a stage of `dvc.yaml`: read the parameters, call one function of `ghm`, write the outs."""

import logging
import signal
import sys
from collections.abc import Callable

from ghm.errors import InputError


def run(stage: Callable[[], None]) -> None:
    """Run a stage; what the user got wrong ends it with one sentence and exit code 1, Ctrl+C with 130."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        stage()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
