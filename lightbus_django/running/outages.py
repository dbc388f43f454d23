"""What the log says of work that fails again and again: an outage, or an error that waiting does not mend.

An outage is a warning, once. If the work still fails though Redis, or the database, answers, somebody has to do
something: that is an error, every five minutes.
"""

import logging
import re
import time
import traceback
from typing import Any

from lightbus_django.bus.client import RedisClient
from lightbus_django.database.errors import one_line, reconnect
from lightbus_django.exceptions import BusError, BusForbidden, BusFull, BusUnsupported, SequenceBehind

logger = logging.getLogger("lightbus_django")

PATIENCE = 30.0
"""Seconds for which work may fail while the server answers, before that is an error."""

ASK_INTERVAL = 5.0
"""Seconds between two questions whether a server answers."""

COMPLAIN_INTERVAL = 300.0
"""Seconds between two errors in the log about the same work."""

# SQLSTATE of PostgreSQL, error numbers of MySQL, texts of SQLite.
_ADVICE = (
    (
        {"42P01", "42703", 1146, 1054},
        r"no such (table|column)|has no column",
        "a table or a column is missing; run manage.py migrate for this database",
    ),
    ({"42501", 1044, 1142, 1143, 1227}, r"$.", "grant the right to the user of the database"),
    ({"53100", 1021, 1114}, r"disk is full", "the disk of the database is full; make room"),
    (
        {"25006", 1290, 1792, 1836},
        r"readonly database",
        "the database is read-only; is it a replica, or may its file not be written?",
    ),
)


class Outage:
    """Work that is done again and again, and how long it has failed."""

    def __init__(self, name: str, client: RedisClient) -> None:
        self.name = name
        self.error: Exception | None = None
        """The last failure; None when the work got done."""
        self.needs_somebody = False
        """Whether that is no outage, and does not mend by itself."""
        self._is_told = False
        self._client = client
        self._answers_since: float | None = None
        self._ask_at = 0.0
        self._complain_at = 0.0

    def failed(self, error: Exception, now: float | None = None, *, is_told: bool = False) -> None:
        """The work failed: say so, unless that has been said.

        Args:
            now: the time on the monotonic clock, in seconds.
            is_told: the log has a warning of it.
        """
        now = time.monotonic() if now is None else now
        self.needs_somebody = self._is_permanent(error, now, is_first=self.error is None)
        self.error = error
        if self.needs_somebody and now >= self._complain_at:
            self._complain_at = now + COMPLAIN_INTERVAL
            self._is_told = True
            logger.error("%s: can't go on: %s", self.name, one_line(error) + (advice(error) or _no_outage(error)))
        elif not (self._is_told or is_told):
            self._is_told = True
            logger.warning("%s: waiting: %s", self.name, one_line(error))

    def ended(self) -> None:
        """The work got done."""
        if self._is_told:
            logger.warning("%s: going on", self.name)
        self._is_told = self.needs_somebody = False
        self.error = self._answers_since = None

    def _is_permanent(self, error: Exception, now: float, *, is_first: bool) -> bool:
        if isinstance(error, (BusForbidden, BusUnsupported, SequenceBehind)):
            return True
        if is_first:
            self._ask_at = now + ASK_INTERVAL
        elif now >= self._ask_at:
            self._ask_at = now + ASK_INTERVAL
            answers = self._client.ping() if isinstance(error, BusError) else reconnect()
            self._answers_since = (self._answers_since or now) if answers else None
        return self._answers_since is not None and now - self._answers_since >= PATIENCE


def advice(error: Exception) -> str:
    """Return what to do about an error of a database, to be put behind its text; nothing if that is not known."""
    origin = _origin(error)
    code: Any = getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None) or next(iter(origin.args), None)
    for codes, text, what in _ADVICE:
        if (isinstance(code, (str, int)) and code in codes) or re.search(text, str(origin)):
            return f" ({what})"
    return ""


def _origin(error: Exception) -> Exception:
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _no_outage(error: Exception) -> str:
    """Return what else is known of an error that does not go away, to be put behind its text."""
    if isinstance(error, (BusForbidden, BusUnsupported, BusFull, SequenceBehind)):
        return ""  # its text says what to do
    if isinstance(error, BusError):
        return " (Redis answers otherwise, so this is no outage)"
    frames = traceback.extract_tb(_origin(error).__traceback__)
    where = f"; raised in {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f" (the database answers otherwise, so this is no outage{where})"
