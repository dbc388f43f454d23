"""Periodic jobs that one thread runs in turn, and how another thread sees that one of them hangs."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from django.db import Error as DatabaseError

from lightbus_django.bus.client import RedisClient
from lightbus_django.database.errors import close_broken
from lightbus_django.exceptions import LightbusError

from .outages import Outage

logger = logging.getLogger("lightbus_django")

AFTER_FAILURE = 5.0
MAX_AFTER_FAILURE = 60.0
"""Seconds until a job that failed runs again; twice as many after each further failure, but for frequent jobs."""

STUCK_AFTER = 10.0
"""Seconds after which a job that has not returned is reported."""

REMIND_EVERY = 60.0
"""Seconds between two reports of the same job."""


@dataclass
class Job:
    """One thing to do, time and again."""

    name: str
    run: Callable[[], bool]
    """Returns whether there was something to do."""
    interval: float
    at_once: Callable[[], bool] = lambda: False
    """Whether it runs again at once when there was something to do."""
    due_at: float = 0.0
    delay: float = 0.0


class Jobs:
    """Jobs that have a thread, a clock and a place in the log of their own. `step` is for one thread at a time."""

    def __init__(self, name: str, jobs: Sequence[Job], client: RedisClient) -> None:
        """Make jobs; `name` is what does not answer if one of them hangs."""
        self.name = name
        self.outages = {job.name: Outage(job.name, client) for job in jobs}
        self._jobs = jobs
        self._running: tuple[Job, float] | None = None
        self._report_at = 0.0

    def step(self, now: float | None = None) -> bool:
        """Run what is due at `now`, seconds on the monotonic clock; return whether there was something to do.

        A job that fails does not keep the others from running.
        """
        if now is None:
            now = time.monotonic()
        results = [self._run(job, now) for job in self._jobs if now >= job.due_at]
        return any(results)

    def seconds_left(self) -> float:
        """Return the seconds until the next job is due."""
        return max(0.0, min(job.due_at for job in self._jobs) - time.monotonic())

    def is_stuck(self) -> bool:
        """Whether a job has been running for long."""
        running = self._running
        return running is not None and time.monotonic() - running[1] > STUCK_AFTER

    def report_stuck(self) -> None:
        """Log a warning if a job has been running for long, and more while it goes on; for another thread."""
        running, now = self._running, time.monotonic()
        if running is None or now - running[1] <= STUCK_AFTER:
            self._report_at = 0.0
        elif now >= self._report_at:
            self._report_at = now + REMIND_EVERY
            text = "%s has not answered for %.0f s (%s); only its own jobs wait"
            logger.warning(text, self.name, now - running[1], running[0].name)

    def _run(self, job: Job, now: float) -> bool:
        job.due_at = now + job.interval
        started = time.monotonic()
        self._running = job, started
        try:
            something_done = job.run()
        except (LightbusError, DatabaseError) as error:
            close_broken()
            self.outages[job.name].failed(error)
            job.delay = min(2 * job.delay or AFTER_FAILURE, max(AFTER_FAILURE, min(job.interval, MAX_AFTER_FAILURE)))
            job.due_at = now + job.delay
            return False
        finally:
            self._running = None
        if time.monotonic() - started > STUCK_AFTER:
            logger.warning("%s: going on", job.name)
        self.outages[job.name].ended()
        job.delay = 0.0
        if something_done and job.at_once():
            job.due_at = now
        return something_done
