"""Warnings about consumer groups that keep events from being trimmed, because no process reads them."""

import logging
from collections.abc import Iterable
from math import isinf

from lightbus_django.bus import streams
from lightbus_django.bus.client import RedisClient

logger = logging.getLogger("lightbus_django")

INTERVAL = 6 * 3600.0
"""Seconds from one look to the next."""


class StaleGroups:
    """What the log is told of groups, at one look after the other."""

    def __init__(self, client: RedisClient, *, stale_after: float) -> None:
        """Prepare for the first look.

        Args:
            stale_after: seconds after which a group that is not read counts as stale.
        """
        self._client = client
        self._stale_after = stale_after
        self._missing: set[tuple[str, str]] = set()

    def look_at(self, stream: str, awaited: Iterable[str]) -> set[tuple[str, str]]:
        """Warn of the groups of a stream that are not read; return those of `awaited` that are missing there."""
        groups = streams.groups(self._client, stream)
        for group in groups:
            # A listener that waits for events of a quiet stream may not have asked for long.
            if group.unread_for() > self._stale_after and (group.pending or group.lag != 0):
                logger.warning(
                    "nobody has read the group %s of %s for %s; %s events are kept because of it. If its "
                    "listener is gone for good: manage.py lightbus_retire %s",
                    group.name,
                    stream,
                    "an unknown time" if isinf(unread := group.unread_for()) else f"{unread / 86400:.1f} days",
                    "?" if group.lag is None else group.lag + group.pending,
                    group.name,
                )
        return {(name, stream) for name in set(awaited) - {group.name for group in groups}}

    def report_missing(self, missing: set[tuple[str, str]]) -> None:
        """Warn of groups and streams that were missing at the last look too: at a first start all of them are."""
        lasting, self._missing = missing & self._missing, missing
        if lasting:
            names, keys = (", ".join(sorted(set(part))) for part in zip(*lasting, strict=True))
            text = "no process has run these listeners in the last %g hours: %s"
            text += "; until one does, nothing is trimmed from %s"
            logger.warning(text, INTERVAL / 3600, names, keys)
