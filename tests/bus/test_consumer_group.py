"""One consumer's view of a group, on a real server."""

from contextlib import closing

import pytest

from lightbus_django.bus.consumer_group import PLACEHOLDER, GroupConsumer
from lightbus_django.bus.group_progress import GroupProgress
from lightbus_django.bus.stream_ids import id_key, previous_id
from lightbus_django.exceptions import GroupMissing

KEY = "shop.*:stream"
GROUP = "shop-book"
OTHER = "other.*:stream"


@pytest.fixture
def consumer(r, redis_client):
    with closing(GroupConsumer(redis_client, GROUP, "one")) as consumer:
        assert consumer.join(KEY, "0")
        yield consumer


@pytest.fixture
def other(redis_client, consumer):
    with closing(GroupConsumer(redis_client, GROUP, "two")) as other:
        assert not other.join(KEY, "0")
        yield other


def add(r, count=1):
    return [r.xadd(KEY, {"number": number}) for number in range(count)]


def read(consumer, count=10, **acknowledge):
    return consumer.read([KEY], count=count, block=0, acknowledge=acknowledge)


def consumers(r):
    return {row["name"]: row for row in r.xinfo_consumers(KEY, GROUP)}


def pending(r):
    return {
        row["message_id"]: (row["consumer"], row["times_delivered"])
        for row in r.xpending_range(KEY, GROUP, "-", "+", 100)
    }


def test_a_read_returns_new_entries_in_order(r, consumer):
    first, second = add(r, 2)
    entries = read(consumer)
    assert [entry.stream_id for entry in entries] == [first, second]
    assert entries[0].fields == {b"number": b"0"}
    assert (entries[0].deliveries, entries[0].is_redelivered) == (1, False)
    assert read(consumer) == []


def test_a_read_acknowledges_first(r, consumer):
    (stream_id,) = add(r)
    read(consumer)
    assert read(consumer, **{KEY: [stream_id]}) == []
    assert pending(r) == {}


def test_claims_count_no_delivery(r, consumer, other):
    (stream_id,) = add(r)
    read(consumer)
    (entry,) = consumer.claim_own(KEY, 10)
    assert (entry.deliveries, entry.is_redelivered) == (2, True)
    assert other.claim_own(KEY, 10) == []
    (entry,) = other.reclaim(KEY, idle=0, count=10)
    assert entry.deliveries == 2
    assert pending(r) == {stream_id: ("two", 1)}
    other.count_delivery(entry)
    assert read(other) == []
    assert pending(r) == {stream_id: ("two", 2)}


def test_a_trimmed_entry_is_claimed_without_fields(r, consumer):
    (stream_id,) = add(r)
    read(consumer)
    r.xtrim(KEY, maxlen=0, approximate=False)
    (entry,) = consumer.claim_own(KEY, 10)
    assert (entry.stream_id, entry.fields) == (stream_id, {})
    assert pending(r) == {stream_id: ("one", 1)}


def test_leases_of_others_are_neither_renewed_nor_released(r, consumer, other):
    first, second = add(r, 2)
    read(consumer, count=1)
    read(other, count=1)
    assert consumer.renew(KEY, [first, second]) == [first]
    consumer.release(KEY, [first, second], idle=100, deliveries=0, to=PLACEHOLDER)
    assert pending(r) == {first: (PLACEHOLDER, 0), second: ("two", 1)}
    assert [entry.stream_id for entry in other.reclaim(KEY, idle=60, count=10)] == [first]


def test_the_last_consumer_leaves_a_placeholder(r, consumer, other):
    consumer.leave(KEY)
    assert consumers(r).keys() == {"two"}
    other.leave(KEY)
    assert consumers(r).keys() == {PLACEHOLDER}


def test_a_consumer_with_pending_entries_does_not_leave(r, consumer):
    add(r)
    read(consumer)
    consumer.leave(KEY)
    assert consumers(r).keys() == {"one"}


def test_a_consumer_that_is_marked_alive_exists(r, consumer):
    r.xgroup_delconsumer(KEY, GROUP, "one")
    consumer.mark_alive([KEY, OTHER])
    assert consumers(r).keys() == {"one"}
    assert not r.exists(OTHER)


class TestProgress:
    def test_changes_nothing(self, r, consumer):
        r.xgroup_delconsumer(KEY, GROUP, "one")
        consumer.progress(KEY)
        assert consumers(r) == {}

    def test_ends_before_the_oldest_pending_entry(self, r, consumer):
        first, second, third = add(r, 3)
        read(consumer)
        consumer.acknowledge({KEY: [first, third]})
        assert consumer.progress(KEY) == GroupProgress(previous_id(second), 0, first)
        consumer.acknowledge({KEY: [second]})
        assert consumer.progress(KEY) == GroupProgress(third, 0, first)

    def test_counts_entries_that_were_trimmed_unread(self, r, consumer):
        add(r, 3)
        read(consumer, count=1)
        r.xtrim(KEY, maxlen=0, approximate=False)
        assert consumer.progress(KEY).lost == 2

    @pytest.mark.parametrize("stream", [KEY, OTHER])
    def test_needs_a_group(self, r, consumer, stream):
        r.xgroup_destroy(KEY, GROUP)
        with pytest.raises(GroupMissing):
            consumer.progress(stream)


@pytest.mark.parametrize(
    ("stream_id", "previous"), [("5-3", "5-2"), ("5-0", f"4-{2**64 - 1}"), (f"{2**53 + 1}-1", f"{2**53 + 1}-0")]
)
def test_the_previous_id_is_the_next_smaller_one(stream_id, previous):
    assert previous_id(stream_id) == previous
    assert id_key(previous) < id_key(stream_id)
