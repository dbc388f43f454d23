"""The health of recurring work: whether it runs, is interrupted by an outage, or needs attention.

An outage is logged as a warning, once. If the work still fails although Redis or the database answers, waiting won't
help: that is logged as an error every five minutes.
"""

import logging
import time

from lightbus_django.bus.client import RedisClient
from lightbus_django.database.errors import one_line, reconnect
from lightbus_django.exceptions import BusError, BusForbidden, BusUnsupported, NodeUnavailable, SequenceBehind

from .advice import advice, not_an_outage

logger = logging.getLogger("lightbus_django")

GRACE_PERIOD = 30.0
"""Seconds that work may fail while the server answers before it needs attention."""

PROBE_INTERVAL = 5.0
"""Seconds between two checks whether the server answers."""

REMINDER_INTERVAL = 300.0
"""Seconds between two errors in the log about the same work."""

PERMANENT_ERRORS = (BusForbidden, BusUnsupported, SequenceBehind)
"""Errors that need attention at once."""


class Health:
    """The health of one listener or periodic job."""

    def __init__(self, name: str, client: RedisClient) -> None:
        self.name = name
        self.error: Exception | None = None
        """The last failure; None after a success."""
        self.needs_attention = False
        """Whether the work fails for a reason that waiting doesn't remove."""
        self._is_logged = False
        self._client = client
        self._answers_since: float | None = None
        self._probe_at = 0.0
        self._remind_at = 0.0

    def failed(self, error: Exception, now: float | None = None, *, is_logged: bool = False) -> None:
        """Record a failure, and log it unless that has been done.

        Args:
            now: monotonic time in seconds.
            is_logged: whether the caller has logged a warning about it.
        """
        now = time.monotonic() if now is None else now
        self._probe_server(error, now)
        self.needs_attention = isinstance(error, PERMANENT_ERRORS) or (
            self._answers_since is not None and now - self._answers_since >= GRACE_PERIOD
        )
        self.error = error
        if self.needs_attention and now >= self._remind_at:
            self._remind_at = now + REMINDER_INTERVAL
            self._is_logged = True
            hint = advice(error) or not_an_outage(error)
            logger.error("%s: needs attention: %s", self.name, one_line(error) + hint)
        elif not (self._is_logged or is_logged):
            self._is_logged = True
            logger.warning("%s: interrupted, retrying: %s", self.name, one_line(error))

    def succeeded(self) -> None:
        """Record a success, and log it if failures were logged."""
        if self._is_logged:
            logger.warning("%s: resumed", self.name)
        self._is_logged = self.needs_attention = False
        self.error = self._answers_since = None

    def describe(self) -> str:
        """Return the error while the work fails, on one line; otherwise an empty text."""
        error = self.error
        return "" if error is None else one_line(error)

    def _probe_server(self, error: Exception, now: float) -> None:
        if isinstance(error, PERMANENT_ERRORS):
            return
        if self.error is None:  # the first failure: the server gets some time
            self._probe_at = now + PROBE_INTERVAL
        elif now >= self._probe_at:
            self._probe_at = now + PROBE_INTERVAL
            if isinstance(error, BusError):
                answers = error.answers if isinstance(error, NodeUnavailable) else self._client.ping()
            else:
                answers = reconnect()
            self._answers_since = (self._answers_since or now) if answers else None
