"""The loop of a worker's thread, which survives every error."""

import logging
import threading
from collections.abc import Callable

from django.db import Error as DatabaseError
from django.db import reset_queries

from lightbus_django.exceptions import LightbusError

from .health import Health

logger = logging.getLogger("lightbus_django")

MAX_DELAY = 5.0
"""Maximum seconds before a failed step runs again."""


def run_until_stopped(step: Callable[[], Exception | None], health: Health, stopping: threading.Event) -> None:
    """Call `step` until `stopping` is set, with a growing delay while it raises.

    A step that returns an error has failed as well, but runs again without a delay.
    """
    delay = 0.0
    while not stopping.is_set():
        reset_queries()  # with DEBUG on, Django logs every query
        try:
            problem = step()
        except (LightbusError, DatabaseError) as error:
            health.failed(error)
        except Exception:
            logger.exception("%s: unexpected error; retrying", health.name)
        else:
            if problem:
                health.failed(problem, is_logged=True)
            else:
                health.succeeded()
            delay = 0.0
            continue
        delay = min(2 * delay or 0.1, MAX_DELAY)
        stopping.wait(delay)
