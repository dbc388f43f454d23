"""Figures in Redis: how many events consumer groups and processes handled in each minute, and the groups' latencies.

They belong to a group, or to the name of a process, so a restart does not reset them. There is a hash for each group
and hour, and one for each service and hour with the counts of all its processes.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from .client import RedisClient
from .wire import Command

PREFIX = "{lightbus_django}:figures:"
PROCESSES_PREFIX = "{lightbus_django}:handled:"

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
    latencies: Mapping[int, int]
    """The number of events in each bucket."""


class Figures(msgspec.Struct, frozen=True):
    """The figures of a consumer group in the last hour."""

    minutes: list[Minute]
    """Sixty minutes, the current one last."""

    @property
    def handled(self) -> int:
        return sum(minute.handled for minute in self.minutes)

    @property
    def failed(self) -> int:
        return sum(minute.failed for minute in self.minutes)

    @property
    def per_minute(self) -> float:
        return per_minute([minute.handled for minute in self.minutes])

    def percentile(self, share: float) -> float | None:
        """Return what `percentile` does, for all events of the hour."""
        return percentile(_add_up(minute.latencies for minute in self.minutes), share)


def per_minute(minutes: Sequence[int]) -> float:
    """Return the average of the last five whole minutes, given those of an hour, the current one last."""
    whole = minutes[-6:-1]
    return sum(whole) / len(whole)


def percentile(latencies: Mapping[int, int], share: float) -> float | None:
    """Return the latency from publication to handling that this share of the events keeps to, in seconds.

    Args:
        latencies: the number of events in each bucket.
    """
    left = share * sum(latencies.values())
    for number, count in sorted(latencies.items()):
        left -= count
        if left <= 0:
            return _latency(number)
    return None


def merge(figures: Iterable[Figures]) -> list[Minute]:
    """Return the minutes of several groups, each added up."""
    return [
        Minute(
            minutes[0].at,
            sum(minute.handled for minute in minutes),
            sum(minute.failed for minute in minutes),
            _add_up(minute.latencies for minute in minutes),
        )
        for minutes in zip(*(each.minutes for each in figures), strict=True)
    ]


def _add_up(histograms: Iterable[Mapping[int, int]]) -> Counter[int]:
    total: Counter[int] = Counter()
    for histogram in histograms:
        total.update(histogram)
    return total


def add(
    client: RedisClient,
    counts: Mapping[str, Counter[str | int]],
    now: datetime,
    *,
    process: tuple[str, str] | None = None,
) -> None:
    """Add what consumer groups have done since the last call.

    Args:
        counts: for each group, the numbers of events HANDLED and FAILED, and in each bucket of latencies.
        now: the current time.
        process: the service name and the name of the process that has handled them.
    """
    commands: list[Command] = []
    for group, counter in counts.items():
        key = _key(group, now)
        commands += [("HINCRBY", key, f"{now.minute}:{name}", count) for name, count in counter.items() if count]
        commands.append(("EXPIRE", key, EXPIRY))
    handled = sum(counter[HANDLED] for counter in counts.values())
    if process is not None and handled:
        service_name, process_name = process
        key = _key(service_name, now, PROCESSES_PREFIX)
        commands += [("HINCRBY", key, f"{now.minute}:{process_name}", handled), ("EXPIRE", key, EXPIRY)]
    for reply in client.send(commands):
        if isinstance(reply, Exception):
            raise client.handle_error(reply, PREFIX)


def read(client: RedisClient, groups: list[str], now: datetime | None = None) -> dict[str, Figures]:
    """Return the figures of consumer groups in the last hour."""
    now = datetime.now(UTC) if now is None else now
    hours = iter(_read_hours(client, [_key(group, hour) for group in groups for hour in _hours(now)]))
    return {group: Figures([_minute(*each) for each in _by_minute(next(hours), next(hours), now)]) for group in groups}


def read_processes(client: RedisClient, service_name: str, now: datetime | None = None) -> dict[str, list[int]]:
    """Return how many events each process of a service handled in the last sixty minutes, the current one last.

    Those that handled none are left out.
    """
    now = datetime.now(UTC) if now is None else now
    previous, current = _read_hours(client, [_key(service_name, hour, PROCESSES_PREFIX) for hour in _hours(now)])
    handled: defaultdict[str, list[int]] = defaultdict(lambda: [0] * 60)
    for number, (_, counts) in enumerate(_by_minute(previous, current, now)):
        for name, count in counts.items():
            handled[name][number] = count
    return dict(handled)


def _hours(now: datetime) -> tuple[datetime, datetime]:
    return now - timedelta(hours=1), now


def _read_hours(client: RedisClient, keys: list[str]) -> list[dict[str, int]]:
    return [_counts(client, reply) for reply in client.send([("HGETALL", key) for key in keys])]


def _counts(client: RedisClient, reply: object) -> dict[str, int]:
    if isinstance(reply, Exception):
        raise client.handle_error(reply, PREFIX)
    flat = iter(reply)  # type: ignore[call-overload]
    return {name.decode(): int(count) for name, count in zip(flat, flat, strict=True)}


def _by_minute(
    previous: dict[str, int], current: dict[str, int], now: datetime
) -> Iterator[tuple[datetime, dict[str, int]]]:
    """Yield the counts of each minute of the hour that ends at `now`, from those of the previous and current hour."""
    minutes: defaultdict[tuple[bool, int], dict[str, int]] = defaultdict(dict)
    for is_current, hour in ((False, previous), (True, current)):
        for field, count in hour.items():
            minute, _, name = field.partition(":")
            minutes[is_current, int(minute)][name] = count
    for at in _last_minutes(now):
        yield at, minutes[(at.hour, at.date()) == (now.hour, now.date()), at.minute]


def _minute(at: datetime, counts: dict[str, int]) -> Minute:
    latencies = {int(name): count for name, count in counts.items() if name.isdecimal()}
    return Minute(at, counts.get(HANDLED, 0), counts.get(FAILED, 0), latencies)


def _last_minutes(now: datetime) -> Iterator[datetime]:
    this_minute = now.replace(second=0, microsecond=0)
    for back in reversed(range(60)):
        yield this_minute - timedelta(minutes=back)


def _key(name: str, time: datetime, prefix: str = PREFIX) -> str:
    return f"{prefix}{name}:{time:%Y%m%d%H}"
