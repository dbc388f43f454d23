"""What a thread of a worker does again and again, whatever it meets."""

import logging
import threading
from collections.abc import Callable

from django.db import Error as DatabaseError
from django.db import reset_queries

from lightbus_django.exceptions import LightbusError

from .outages import Outage

logger = logging.getLogger("lightbus_django")

MAX_DELAY = 5.0
"""Seconds at most until a thread tries again what failed."""


def repeat(step: Callable[[], Exception | None], outage: Outage, stopping: threading.Event) -> None:
    """Call `step`, which raises or returns what is the matter, until `stopping` is set; after a while if it failed."""
    delay = 0.0
    while not stopping.is_set():
        reset_queries()  # Django logs them if DEBUG is on
        try:
            trouble = step()
        except (LightbusError, DatabaseError) as error:
            outage.failed(error)
        except Exception:
            logger.exception("%s: an error that should not be; trying again", outage.name)
        else:
            if trouble:
                outage.failed(trouble, is_told=True)
            else:
                outage.ended()
            delay = 0.0
            continue
        delay = min(2 * delay or 0.1, MAX_DELAY)
        stopping.wait(delay)
