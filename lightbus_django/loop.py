"""What a thread of a worker does again and again, whatever it meets."""

import logging
import threading
import time
from collections.abc import Callable

from django.db import Error as DatabaseError

from .database import one_line
from .exceptions import BusForbidden, LightbusError

logger = logging.getLogger("lightbus_django")

COMPLAIN_INTERVAL = 300.0
"""Seconds between two errors in the log about what does not mend by itself."""

MAX_DELAY = 5.0
"""Seconds at most until a thread tries again what failed."""


class Loop:
    """Calls steps until `stopping` is set; one that fails is called again after a while. For any number of threads."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._complain_at = 0.0

    def run(self, step: Callable[[], object], name: str) -> None:
        """Call `step` until the stop; `name` is what the log calls it."""
        delay = 0.0
        while not self._stopping.is_set():
            try:
                step()
            except (LightbusError, DatabaseError) as error:
                if isinstance(error, BusForbidden) and time.monotonic() > self._complain_at:
                    self._complain_at = time.monotonic() + COMPLAIN_INTERVAL
                    logger.error("%s: can't go on: %s", name, error)
                elif not delay:
                    logger.warning("%s: waiting: %s", name, one_line(error))
            except Exception:
                logger.exception("%s: an error that should not be; trying again", name)
            else:
                if delay:
                    logger.warning("%s: going on", name)
                delay = 0.0
                continue
            delay = min(2 * delay or 0.1, MAX_DELAY)
            self._stopping.wait(delay)
