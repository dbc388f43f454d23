"""The times in stream ids and event ids."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from lightbus_django.events.ids import uuid7
from lightbus_django.events.times import (
    SKEW,
    as_stored,
    event_bytes,
    fired_at,
    first_id,
    has_time,
    is_ahead,
    published_at,
    stream_time,
)

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
AHEAD = "9000000000000-0"


def test_a_stream_id_contains_the_time_of_publication():
    assert stream_time("1767225600000-3") == NEW_YEAR
    assert stream_time(f"{2**64 - 1}-0").year == 9999


def test_a_stream_id_is_ahead_if_it_is_further_than_clocks_may_differ():
    now = NEW_YEAR - SKEW
    assert not is_ahead("1767225600000-3", now)
    assert is_ahead("1767225600001-0", now)


def test_an_event_id_contains_the_time_of_the_call():
    event_id = uuid7()
    assert abs(fired_at(str(event_id)) - datetime.now(UTC)) < timedelta(minutes=1)
    assert has_time(str(event_id))
    assert event_bytes(str(event_id)) == event_id.bytes


@pytest.mark.parametrize("event_id", ["theirs", "", str(uuid.UUID(int=5))])
def test_the_ids_of_others_contain_none(event_id):
    assert fired_at(event_id) is None
    assert not has_time(event_id)


def test_ids_of_later_events_are_greater_than_the_first_id_of_a_time():
    event_id = str(uuid7())
    at = fired_at(event_id)
    assert event_id.startswith(first_id(at))
    assert first_id(at - timedelta(milliseconds=1)) < event_id < first_id(at + timedelta(milliseconds=1))
    assert first_id(datetime(1960, 1, 1, tzinfo=UTC)) == "00000000-0000"


def test_an_event_was_published_at_the_time_in_its_stream_id_unless_that_is_ahead():
    event_id = str(uuid7())
    assert published_at("1767225600000-3", event_id) == NEW_YEAR
    assert published_at(AHEAD, event_id) == fired_at(event_id)
    assert published_at(AHEAD, "theirs") is None


def test_times_are_stored_as_use_tz_says(settings):
    settings.USE_TZ, settings.TIME_ZONE = True, "Asia/Tokyo"
    assert as_stored(NEW_YEAR) is NEW_YEAR
    settings.USE_TZ = False
    assert as_stored(NEW_YEAR) == datetime(2026, 1, 1, 9)  # noqa: DTZ001
