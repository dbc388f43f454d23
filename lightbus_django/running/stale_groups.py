"""Warnings about consumer groups that no process reads: they keep events from being trimmed."""

import logging
from collections.abc import Iterable
from math import isinf

from lightbus_django.bus import streams
from lightbus_django.bus.client import RedisClient

logger = logging.getLogger("lightbus_django")

INTERVAL = 6 * 3600.0
"""Seconds between two checks."""


class StaleGroups:
    """Checks for stale and missing groups, and remembers what was missing at the last check."""

    def __init__(self, client: RedisClient, *, stale_after: float) -> None:
        """Prepare the first check.

        Args:
            stale_after: seconds after which a group that is not read counts as stale.
        """
        self._client = client
        self._stale_after = stale_after
        self._missing: set[tuple[str, str]] = set()

    def check(self, stream: str, expected: Iterable[str]) -> set[tuple[str, str]]:
        """Warn about the stale groups of a stream; return the `expected` groups that it lacks, with its key."""
        groups = streams.groups(self._client, stream)
        for group in groups:
            # The listener of a quiet stream may not have asked Redis for a long time.
            if group.unread_for() > self._stale_after and (group.pending or group.lag != 0):
                logger.warning(
                    "group %s of %s has not been read for %s; %s events are kept because of it. If its listener is "
                    "gone for good, run: manage.py lightbus_retire %s",
                    group.name,
                    stream,
                    "an unknown time" if isinf(unread := group.unread_for()) else f"{unread / 86400:.1f} days",
                    "?" if group.lag is None else group.lag + group.pending,
                    group.name,
                )
        return {(name, stream) for name in set(expected) - {group.name for group in groups}}

    def warn_of_missing(self, missing: set[tuple[str, str]]) -> None:
        """Warn of groups that were missing at the last check too; before a service's first start all of them are."""
        lasting, self._missing = missing & self._missing, missing
        if lasting:
            names, keys = (", ".join(sorted(set(part))) for part in zip(*lasting, strict=True))
            text = "no process has run these listeners in the last %g hours: %s; until one does, %s can't be trimmed"
            logger.warning(text, INTERVAL / 3600, names, keys)
