"""Event ids, and the keys that stand for them in the database."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from lightbus_django.events.ids import event_key, uuid7


@given(st.text())
def test_a_key_is_the_id_or_stands_for_it(event_id):
    key = event_key(event_id)
    assert len(key) <= 80
    assert key == key.lower().strip()
    assert event_key(key) == key


def test_keys_differ_where_a_database_that_ignores_case_and_blanks_sees_none():
    ids = ["abc", "ABC", "abc ", "äbc", "a" * 1000, "a" * 1001, ""]
    assert len({event_key(event_id) for event_id in ids}) == len(ids)
    assert event_key("abc") == "abc"


def test_event_ids_come_in_order_and_say_when():
    ids = [uuid7() for _ in range(10_000)]
    assert ids == sorted(set(ids))
    assert {(i.version, i.variant) for i in ids} == {(7, ids[0].variant)}
    assert abs((ids[0].int >> 80) / 1000 - datetime.now(UTC).timestamp()) < 60
