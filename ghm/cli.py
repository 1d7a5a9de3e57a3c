"""What every command has in common: how it logs, and how it ends."""

import logging
import os
import signal
import sys
from collections.abc import Callable

from ghm.errors import InputError

# Read when CUDA starts, which an import may do. A GPU has the number that nvidia-smi gives it, and asking whether there
# is one starts nothing: what is claimed afterwards can still be made all that CUDA shows.
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


def run(main: Callable[[], None]) -> None:
    """Run a command; what the user got wrong ends it with one sentence and exit code 1, Ctrl+C with 130."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
