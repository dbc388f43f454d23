"""Counts what a listener does, until the next heartbeat adds it to the figures of its consumer group."""

import threading
import time
from collections import Counter
from collections.abc import Sequence

from lightbus_django.bus.figures import FAILED, HANDLED, bucket

from .delivery import Delivery

SAMPLE = 16
"""The latencies of about so many events of a batch are measured; each stands for its neighbours."""


class Tally:
    """The counts of one listener in this process. Its thread counts; another thread drains."""

    def __init__(self) -> None:
        self._counts: Counter[str | int] = Counter()
        self._lock = threading.Lock()

    def handled(self, deliveries: Sequence[Delivery]) -> None:
        """Count events that are handled, and how long after their publication."""
        if not deliveries:
            return
        now, step = time.time() * 1000, 1 + len(deliveries) // SAMPLE
        with self._lock:
            self._counts[HANDLED] += len(deliveries)
            for first in range(0, len(deliveries), step):
                milliseconds = int(deliveries[first].entry.stream_id.partition("-")[0])
                self._counts[bucket(now - milliseconds)] += min(step, len(deliveries) - first)

    def retried(self) -> None:
        """Count a failed event that is handled now."""
        with self._lock:
            self._counts[HANDLED] += 1

    def failed(self) -> None:
        """Count a failed attempt."""
        with self._lock:
            self._counts[FAILED] += 1

    def drain(self) -> Counter[str | int]:
        """Return the counts, and begin again."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return counts

    def put_back(self, counts: Counter[str | int]) -> None:
        """Add counts that were drained but could not be added to the figures."""
        with self._lock:
            self._counts.update(counts)
