"""Events that meet transient errors again and again, and when such an event is itself the cause."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from django.db import connections

from lightbus_django.database.connections import fetch
from lightbus_django.database.errors import is_sqlite_unavailable, one_line, transient_errors
from lightbus_django.exceptions import DatabaseUnavailable, EventContended, KeyLocked

from .activity import CONNECTING, Activity

logger = logging.getLogger("lightbus_django")

TRIES = 2
"""How often an event is handled again at once."""

TRIES_WITHIN = 1.0
"""Seconds after which there is no further immediate try."""

PAUSE = 0.05
"""Longest pause in seconds before the first of these tries; twice that before the second. Half of it is random."""

ROUNDS = 4
PATIENCE = 3.0
"""An event counts as the cause after this many rounds and seconds, if others succeed or can't be tried."""

MAX_REMEMBERED = 1000


@dataclass
class _Rounds:
    since: float
    successes: int
    count: int = 0


class Contention:
    """The events of one listener that met transient database errors."""

    def __init__(self, using: str, group: str, activity: Activity) -> None:
        self.successes = 0
        """The number of events that got through."""
        self.is_crowded = False
        """Whether so many events are set aside that no others are read, so that none can succeed."""
        self._using = using
        self._group = group
        self._activity = activity
        self._rounds: dict[str, _Rounds] = {}

    def handle_again(
        self, key: str, handle: Callable[[], BaseException | None], error: DatabaseUnavailable
    ) -> BaseException | None:
        """Handle an event again, a few times, after a transient error; return the failure that `handle` returns.

        Returns an EventContended, which then counts as a failure, if the event itself seems to be the cause.

        Raises:
            DatabaseUnavailable: the database doesn't answer, or is contended as a whole.
            EventContended: it does answer, so other events may get through.
        """
        if isinstance(error, KeyLocked):  # another try would wait again
            raise EventContended(str(error)) from error
        logger.info("%s: handling %s again: %s", self._group, key, one_line(error))
        self._activity.start(CONNECTING)
        connection = connections[self._using]
        if is_sqlite_unavailable(error):
            raise error
        began_at = time.monotonic()
        for number in range(1, TRIES + 1):
            time.sleep(number * PAUSE * random.uniform(0.5, 1))
            with transient_errors(self._using):
                connection.ensure_connection()
            driver = connection.connection
            try:
                with transient_errors(self._using):
                    failure = handle()
            except DatabaseUnavailable as again:
                error = again
                if time.monotonic() - began_at > TRIES_WITHIN:
                    break
            else:
                self.succeeded(key)
                return failure
        with transient_errors(self._using):
            fetch(connection, "SELECT 1")
        if connection.connection is not driver:
            self.successes += 1  # a new connection works, so the loss of the old one was no outage
        contended = EventContended(str(error))
        contended.__cause__ = error
        if isinstance(error, KeyLocked) or not self._end_round(key):
            raise contended
        return contended

    def succeeded(self, key: str) -> None:
        """Note that an event got through."""
        self.successes += 1
        self._rounds.pop(key, None)

    def _end_round(self, key: str) -> bool:
        """Count a round of tries; return True, and forget the event, if it seems to be the cause itself."""
        rounds = self._rounds.pop(key, None) or _Rounds(time.monotonic(), self.successes)
        rounds.count += 1
        is_long = rounds.count >= ROUNDS and time.monotonic() - rounds.since >= PATIENCE
        if is_long and (self.is_crowded or self.successes > rounds.successes):
            return True
        if len(self._rounds) >= MAX_REMEMBERED:
            del self._rounds[next(iter(self._rounds))]
        self._rounds[key] = rounds
        return False
