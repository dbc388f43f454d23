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


class Attempts:
    """Runs the steps of recurring work, and counts how long to wait after those that raise."""

    def __init__(self, health: Health) -> None:
        self.health = health
        self.delay = 0.0
        """Seconds to wait before the next step."""

    def run(self, step: Callable[[], Exception | None]) -> bool:
        """Run a step; return whether it raised no error.

        A step that returns an error has failed as well, but the next one need not wait.
        """
        reset_queries()  # with DEBUG on, Django logs every query
        try:
            problem = step()
        except (LightbusError, DatabaseError) as error:
            self.health.failed(error)
        except Exception:
            logger.exception("%s: unexpected error; retrying", self.health.name)
        else:
            if problem:
                self.health.failed(problem, is_logged=True)
            else:
                self.health.succeeded()
            self.delay = 0.0
            return True
        self.delay = min(2 * self.delay or 0.1, MAX_DELAY)
        return False


def run_until_stopped(step: Callable[[], Exception | None], health: Health, stopping: threading.Event) -> None:
    """Call `step` until `stopping` is set, with a growing delay while it raises."""
    attempts = Attempts(health)
    while not stopping.is_set():
        if not attempts.run(step):
            stopping.wait(attempts.delay)
