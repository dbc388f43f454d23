"""What ids tell of times: a stream id that of its publication, an event id of ours that of the call."""

import re
import uuid
from datetime import UTC, datetime, timedelta

from django.conf import settings as django_settings
from django.utils import timezone

SKEW = timedelta(hours=1)
"""How far the clocks of Redis and of this machine may be apart."""

_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_MILLISECONDS = 253_402_300_799_000  # the year 9999; an id may say anything


def stream_time(stream_id: str) -> datetime:
    """Return the time that is in a stream id; aware, in UTC."""
    return _time(int(stream_id.partition("-")[0]))


def is_ahead(stream_id: str, now: datetime) -> bool:
    """Whether the time in a stream id is yet to come: somebody has chosen the id. Redis gives greater ones since."""
    return stream_time(stream_id) > now + SKEW


def fired_at(event_id: str) -> datetime | None:
    """Return the time in an event id, that of the call which fired it; aware, in UTC. None if it holds no time."""
    try:
        uid = uuid.UUID(event_id)
    except ValueError:
        return None
    return uuid_time(uid) if uid.version == 7 else None


def uuid_time(uid: uuid.UUID) -> datetime:
    """Return the time in a version 7 UUID; aware, in UTC."""
    return _time(uid.int >> 80)


def has_time(event_id: str) -> bool:
    """Whether this is the text of a version 7 UUID, as our own ids are."""
    return _UUID7.fullmatch(event_id) is not None


def first_id(time: datetime) -> str:
    """Return what the ids of events that were fired at `time` or later are not less than, as texts."""
    milliseconds = max(0, (time - _EPOCH) // timedelta(milliseconds=1))
    return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}"


def event_bytes(event_id: str) -> bytes:
    """Return the bytes of an id that has a time."""
    return bytes.fromhex(event_id.replace("-", ""))


def published_at(stream_id: str, event_id: str) -> datetime | None:
    """Return when an event was published, by its stream id; if that is ahead of the time, when it was fired.

    None if its own id does not tell that either.
    """
    now = datetime.now(UTC)
    if not is_ahead(stream_id, now):
        return stream_time(stream_id)
    time = fired_at(event_id)
    return None if time is None or time > now + SKEW else time


def _time(milliseconds: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=min(milliseconds, _MAX_MILLISECONDS))


def as_aware(time: datetime) -> datetime:
    """Return a time of the database as an aware one."""
    return time if timezone.is_aware(time) else timezone.make_aware(time)


def as_stored(time: datetime) -> datetime:
    """Return an aware time as the database has it: a naive one where USE_TZ is off."""
    return time if django_settings.USE_TZ else timezone.make_naive(time)
