"""Events that meet transient errors again and again: when one is the cause of them itself."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from django.db import connections

from lightbus_django.database.connections import fetch
from lightbus_django.database.errors import transient_errors
from lightbus_django.exceptions import DatabaseUnavailable, EventContended

Result = TypeVar("Result")

TRIES = 2
"""How often a transaction is tried again at once."""

TRIES_WITHIN = 1.0
"""Seconds after which it is not tried at once again."""

PAUSE = 0.05
"""Seconds at most before such a try, twice as many before the next one. Half of it is random."""

ROUNDS = 4
PATIENCE = 3.0
"""Rounds of tries, and seconds, after which trouble is an event's own, if others have none or can't be tried."""

MAX_REMEMBERED = 1000


@dataclass
class _Trouble:
    since: float
    successes: int
    rounds: int = 0


class Contention:
    """The troubles of one listener's events with one database."""

    def __init__(self, using: str) -> None:
        self._using = using
        self.successes = 0
        """How many transactions have succeeded."""
        self.is_crowded = False
        """Whether so many events wait that no other can succeed, for none is read."""
        self._by_key: dict[str, _Trouble] = {}

    def persist(self, key: str, work: Callable[[], Result], trouble: DatabaseUnavailable) -> Result:
        """Try the work of an event again, a few times, after it met `trouble` in the database.

        Raises:
            DatabaseUnavailable: the database does not answer, or is busy as a whole.
            EventContended: it has answered since, so that other events may have better luck.
        """
        connection = connections[self._using]
        if connection.vendor == "sqlite":  # it has one lock, for all
            raise trouble
        began_at = time.monotonic()
        for attempt in range(TRIES):
            time.sleep((attempt + 1) * PAUSE * random.uniform(0.5, 1))
            with transient_errors(self._using):
                connection.ensure_connection()
            driver = connection.connection
            try:
                with transient_errors(self._using):
                    result = work()
            except DatabaseUnavailable as error:
                trouble = error
                if time.monotonic() - began_at > TRIES_WITHIN:
                    break
            else:
                self.end(key)
                return result
        with transient_errors(self._using):
            fetch(connection, "SELECT 1")
        if connection.connection is not driver:
            self.successes += 1  # a new connection works, so the loss of the old one is not an outage
        raise EventContended(str(trouble)) from trouble

    def end(self, key: str) -> None:
        """The work of an event is done."""
        self.successes += 1
        self._by_key.pop(key, None)

    def count_round(self, key: str) -> bool:
        """Count one more round of tries in vain; return whether the event seems to be the cause itself."""
        trouble = self._by_key.pop(key, None) or _Trouble(time.monotonic(), self.successes)
        trouble.rounds += 1
        is_long = trouble.rounds >= ROUNDS and time.monotonic() - trouble.since >= PATIENCE
        if is_long and (self.is_crowded or self.successes > trouble.successes):
            return True
        if len(self._by_key) >= MAX_REMEMBERED:
            del self._by_key[next(iter(self._by_key))]
        self._by_key[key] = trouble
        return False
