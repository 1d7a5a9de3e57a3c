"""What every command has in common: how it logs, and how it ends."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ghm.errors import InputError

# Read when CUDA starts, which an import may do. A GPU has the number that nvidia-smi gives it, and asking whether there
# is one starts nothing: what is claimed afterwards can still be made all that CUDA shows.
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


TIMES = "GHM_TIMES"  # names a file that is told how long each stage took
_STARTED = time.monotonic()  # imports take seconds


def run(main: Callable[[], None]) -> None:
    """Run a command; what the user got wrong ends it with one sentence and exit code 1, Ctrl+C with 130."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except InputError as error:
        sys.stdout.flush()  # what was said before it comes before it
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        if TIMES in os.environ and "DVC_STAGE" in os.environ and os.environ.get("RANK", "0") == "0":
            with Path(os.environ[TIMES]).open("a", encoding="utf-8") as file:
                file.write(f"{os.environ['DVC_STAGE']} {time.monotonic() - _STARTED:.1f}\n")
