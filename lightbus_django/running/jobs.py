"""Periodic jobs that share a thread, and how another thread detects that one of them hangs."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from django.db import Error as DatabaseError

from lightbus_django.bus.client import RedisClient
from lightbus_django.bus.errors import is_outage
from lightbus_django.database.errors import close_broken
from lightbus_django.exceptions import LightbusError

from .health import Health

logger = logging.getLogger("lightbus_django")

MIN_RETRY_DELAY = 5.0
MAX_RETRY_DELAY = 60.0
"""Seconds until a failed job runs again. The delay doubles with each failure; frequent jobs keep the minimum."""

STUCK_AFTER = 10.0
"""Seconds after which a running job counts as stuck."""

REMINDER_INTERVAL = 60.0
"""Seconds between two warnings about the same stuck job."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Job:
    """A periodic job, and when it is due."""

    name: str
    run: Callable[[], bool]
    """Does the work; returns whether there was any."""
    interval: float
    """Seconds between two runs."""
    has_more: Callable[[], bool] = lambda: False
    """Whether more work may be left after a run that did some; the job is due again at once then."""
    due_at: float = 0.0
    delay: float = 0.0


class Jobs:
    """Jobs that run in turn. One thread at a time may call `step`; `is_stuck` and `warn_if_stuck` are for others."""

    def __init__(self, name: str, jobs: Sequence[Job], client: RedisClient) -> None:
        """Create the jobs of the server `name`, which the log names if one of them hangs."""
        self.name = name
        self.health = {job.name: Health(job.name, client) for job in jobs}
        self._jobs = jobs
        self._running: tuple[Job, float] | None = None
        self._warn_at = 0.0

    def step(self, now: float | None = None) -> bool:
        """Run the jobs that are due; return whether there was any work.

        If a job fails, the others still run.

        Args:
            now: monotonic time in seconds.
        """
        if now is None:
            now = time.monotonic()
        results = [self._run(job, now) for job in self._jobs if now >= job.due_at]
        return any(results)

    def seconds_left(self) -> float:
        """Return the seconds until the next job is due."""
        return max(0.0, min(job.due_at for job in self._jobs) - time.monotonic())

    def is_stuck(self) -> bool:
        """Return whether a job has been running for more than STUCK_AFTER."""
        running = self._running
        return running is not None and time.monotonic() - running[1] > STUCK_AFTER

    def describe_problems(self) -> list[str]:
        """Return which jobs hang or fail."""
        running, now = self._running, time.monotonic()
        problems = [f"{name}: {text}" for name, health in self.health.items() if (text := health.describe())]
        if running is not None and now - running[1] > STUCK_AFTER:
            problems.append(f"{running[0].name}: {self.name} has not answered for {now - running[1]:.0f} s")
        return problems

    def warn_if_stuck(self) -> None:
        """Log a warning while a job is stuck, once per REMINDER_INTERVAL."""
        running, now = self._running, time.monotonic()
        if running is None or now - running[1] <= STUCK_AFTER:
            self._warn_at = 0.0
        elif now >= self._warn_at:
            self._warn_at = now + REMINDER_INTERVAL
            text = "%s has not answered for %.0f s (%s); only its own jobs are delayed"
            logger.warning(text, self.name, now - running[1], running[0].name)

    def _run(self, job: Job, now: float) -> bool:
        job.due_at = now + job.interval
        started = time.monotonic()
        self._running = job, started
        try:
            has_worked = job.run()
        except (LightbusError, DatabaseError) as error:
            close_broken()
            self.health[job.name].failed(error)
            job.delay = min(2 * job.delay or MIN_RETRY_DELAY, max(MIN_RETRY_DELAY, min(job.interval, MAX_RETRY_DELAY)))
            job.due_at = now + job.delay
            return False
        finally:
            self._running = None
        if time.monotonic() - started > STUCK_AFTER:
            logger.warning("%s: resumed", job.name)
        self.health[job.name].succeeded()
        job.delay = 0.0
        if has_worked and job.has_more():
            job.due_at = now
        return has_worked


def for_each(items: Iterable[Item], work: Callable[[Item], Result]) -> list[Result]:
    """Call `work` with each item, even if it fails for some; return the results.

    Raises:
        BusUnavailable: at once, because Redis would not answer for the other items either. (A node of a cluster is not
            all of Redis.)
        LightbusError, DatabaseError: the last failure, after all items had their turn.
    """
    results = []
    problem: Exception | None = None
    for item in items:
        try:
            results.append(work(item))
        except (LightbusError, DatabaseError) as error:
            if is_outage(error):
                raise
            close_broken()
            problem = error
    if problem is not None:
        raise problem
    return results
