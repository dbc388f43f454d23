"""What came of a request to retry failed events."""

from datetime import datetime, timedelta
from typing import Any

import msgspec
from django.utils import timezone

from lightbus_django.events.times import as_aware, as_stored
from lightbus_django.models import RetryRequest

SHOWN_FOR = timedelta(days=1)
"""How long a request is one of the latest."""


class RetryOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a request until now. All numbers are of events; `total` is the sum of the others."""

    database: str
    at: datetime
    by: str
    total: int
    done: int
    """Handled since, in whichever attempt."""
    failed_again: int
    """They have failed since, and are not done."""
    to_come: int
    """They have not been retried yet."""
    withdrawn: int
    """They left before they were retried: discarded, retried by a later request, or their listener was retired."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing is to come."""
        return not self.to_come

    @property
    def text(self) -> str:
        """What came of it, such as "42 retried: 40 done, 2 failed again"."""
        parts = [f"{self.done:,} done", f"{self.failed_again:,} failed again"]
        if self.to_come:
            parts.append(f"{self.to_come:,} still to come")
        if self.withdrawn:
            parts.append(f"{self.withdrawn:,} withdrawn before their retry")
        return f"{self.total:,} retried: {', '.join(parts)}"


def read_outcomes(using: str, keys: list[int]) -> list[RetryOutcome]:
    """Return the outcomes of requests in a database, the latest first."""
    requests: Any = RetryRequest.objects.using(using).with_events(keys).order_by("-pk")
    return [
        RetryOutcome(
            database=using,
            at=as_aware(each.requested_at),
            by=each.requested_by,
            total=each.total,
            done=each.total - each.failed_now - each.to_come - each.given_up - each.failed_again - each.withdrawn,
            failed_again=each.failed_again + each.failed_now,
            to_come=each.to_come,
            withdrawn=each.withdrawn + each.given_up,
        )
        for each in requests
    ]


def latest_outcomes(using: str, limit: int = 5) -> list[RetryOutcome]:
    """Return the outcomes of the latest requests in a database, the latest first."""
    since = as_stored(timezone.now() - SHOWN_FOR)
    return read_outcomes(using, RetryRequest.objects.using(using).latest_since(since, limit))
