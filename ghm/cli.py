"""What every command has in common: how it logs, and how it ends."""

import logging
import signal
import sys
from collections.abc import Callable

from ghm.errors import InputError


def run(main: Callable[[], None]) -> None:
    """Run a command; what the user got wrong ends it with one sentence and exit code 1, Ctrl+C with 130."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
