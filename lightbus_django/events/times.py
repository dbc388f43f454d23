"""The times in ids: a stream id contains the time of publication, and an id of ours the time of the call."""

import re
import uuid
from datetime import UTC, datetime, timedelta

from django.conf import settings as django_settings
from django.utils import timezone

SKEW = timedelta(hours=1)
"""The maximum difference between the clocks of Redis and this machine."""

_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_MILLISECONDS = 253_402_300_799_000  # the year 9999; other services may choose any id


def stream_time(stream_id: str) -> datetime:
    """Return the time in a stream id; aware, in UTC."""
    return _time(int(stream_id.partition("-")[0]))


def is_ahead(stream_id: str, now: datetime) -> bool:
    """Whether a stream id is ahead of the clock: someone chose the id, and Redis generates greater ones since then."""
    return stream_time(stream_id) > now + SKEW


def fired_at(event_id: str) -> datetime | None:
    """Return when an event was fired, according to its id; aware, in UTC. None if the id contains no time."""
    if has_time(event_id):
        return _time(int(event_id[:8] + event_id[9:13], 16))
    try:
        uid = uuid.UUID(event_id)
    except ValueError:
        return None
    return uuid_time(uid) if uid.version == 7 else None


def uuid_time(uid: uuid.UUID) -> datetime:
    """Return the time in a version 7 UUID; aware, in UTC."""
    return _time(uid.int >> 80)


def first_uuid(time: datetime) -> uuid.UUID:
    """Return the smallest version 7 UUID of a time."""
    milliseconds = max(0, (time - _EPOCH) // timedelta(milliseconds=1))
    return uuid.UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62)


def has_time(event_id: str) -> bool:
    """Whether an event id is a version 7 UUID, as ours are."""
    return _UUID7.fullmatch(event_id) is not None


def first_id(time: datetime) -> str:
    """Return the prefix that ids of events fired at `time` start with. Ids of later events are greater, as text."""
    milliseconds = max(0, (time - _EPOCH) // timedelta(milliseconds=1))
    return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}"


def event_bytes(event_id: str) -> bytes:
    """Return the bytes of an id for which `has_time` is true."""
    return bytes.fromhex(event_id.replace("-", ""))


def published_at(stream_id: str, event_id: str) -> datetime | None:
    """Return when an event was published; aware, in UTC. None if that is unknown.

    That is the time in its stream id. If that is ahead of the clock, it is the time in its event id.
    """
    now = datetime.now(UTC)
    if not is_ahead(stream_id, now):
        return stream_time(stream_id)
    time = fired_at(event_id)
    return None if time is None or time > now + SKEW else time


def _time(milliseconds: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=min(milliseconds, _MAX_MILLISECONDS))


def as_aware(time: datetime) -> datetime:
    """Return a time from the database as an aware datetime."""
    return time if timezone.is_aware(time) else timezone.make_aware(time)


def as_stored(time: datetime) -> datetime:
    """Return an aware datetime as the database stores it: naive if USE_TZ is off."""
    return time if django_settings.USE_TZ else timezone.make_naive(time)
