"""Figures of each consumer group in Redis: how many events it handled in each minute, and their latencies.

They belong to the group and not to a process, so a restart does not reset them. There is a hash for each hour.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from .client import RedisClient
from .wire import Command

PREFIX = "{lightbus_django}:figures:"

EXPIRY = 2 * 3600 + 600
"""Seconds for which Redis keeps the figures of an hour after their last change."""

_STEPS = 4
"""Buckets of a histogram for each doubling of the latency."""

HANDLED = "handled"
FAILED = "failed"


def bucket(milliseconds: float) -> int:
    """Return the bucket of a histogram that a latency belongs to."""
    return int(_STEPS * math.log2(milliseconds + 1)) if milliseconds > 0 else 0


def _latency(number: int) -> float:
    """Return the latency in the middle of a bucket, in seconds."""
    return float(2 ** ((number + 0.5) / _STEPS) - 1) / 1000


class Minute(NamedTuple):
    """The figures of one minute."""

    at: datetime
    handled: int
    failed: int


class Figures(msgspec.Struct, frozen=True):
    """The figures of a consumer group in the last hour."""

    minutes: list[Minute]
    """Sixty minutes, the current one last."""
    latencies: dict[int, int]
    """The number of events in each bucket."""

    @property
    def handled(self) -> int:
        return sum(minute.handled for minute in self.minutes)

    @property
    def failed(self) -> int:
        return sum(minute.failed for minute in self.minutes)

    @property
    def per_minute(self) -> float:
        """How many events were handled in each of the last five whole minutes, on average."""
        whole = self.minutes[-6:-1]
        return sum(minute.handled for minute in whole) / len(whole)

    def percentile(self, share: float) -> float | None:
        """Return the latency from publication to handling that this share of the events keeps to, in seconds."""
        left = share * sum(self.latencies.values())
        for number, count in sorted(self.latencies.items()):
            left -= count
            if left <= 0:
                return _latency(number)
        return None


def add(client: RedisClient, counts: Mapping[str, Counter[str | int]], now: datetime) -> None:
    """Add what consumer groups have done since the last call.

    Args:
        counts: for each group, the numbers of events HANDLED and FAILED, and in each bucket of latencies.
        now: the current time.
    """
    commands: list[Command] = []
    for group, counter in counts.items():
        key = _key(group, now)
        commands += [("HINCRBY", key, f"{now.minute}:{name}", count) for name, count in counter.items() if count]
        commands.append(("EXPIRE", key, EXPIRY))
    for reply in client.send(commands):
        if isinstance(reply, Exception):
            raise client.handle_error(reply, PREFIX)


def read(client: RedisClient, groups: list[str], now: datetime | None = None) -> dict[str, Figures]:
    """Return the figures of consumer groups in the last hour."""
    now = datetime.now(UTC) if now is None else now
    hours = now - timedelta(hours=1), now
    replies = iter(client.send([("HGETALL", _key(group, hour)) for group in groups for hour in hours]))
    return {group: _figures([_counts(client, next(replies)) for _ in hours], now) for group in groups}


def _counts(client: RedisClient, reply: object) -> dict[str, int]:
    if isinstance(reply, Exception):
        raise client.handle_error(reply, PREFIX)
    flat = iter(reply)  # type: ignore[call-overload]
    return {name.decode(): int(count) for name, count in zip(flat, flat, strict=True)}


def _figures(hours: list[dict[str, int]], now: datetime) -> Figures:
    """Return the figures of the hour that ends at `now`, from those of the previous and of the current hour."""
    first, second = hours
    counts: list[tuple[datetime, dict[str, int]]] = []
    minutes = []
    for at in _last_minutes(now):
        hour = second if (at.hour, at.date()) == (now.hour, now.date()) else first
        of_minute = {name.partition(":")[2]: count for name, count in hour.items() if name.startswith(f"{at.minute}:")}
        counts.append((at, of_minute))
        minutes.append(Minute(at, of_minute.get(HANDLED, 0), of_minute.get(FAILED, 0)))
    latencies: Counter[int] = Counter()
    for _, of_minute in counts:
        latencies.update({int(name): count for name, count in of_minute.items() if name.isdecimal()})
    return Figures(minutes, dict(latencies))


def _last_minutes(now: datetime) -> Iterator[datetime]:
    this_minute = now.replace(second=0, microsecond=0)
    for back in reversed(range(60)):
        yield this_minute - timedelta(minutes=back)


def _key(group: str, time: datetime) -> str:
    return f"{PREFIX}{group}:{time:%Y%m%d%H}"
