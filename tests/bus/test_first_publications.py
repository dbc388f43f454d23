"""Republished events reach the listeners that existed when they were first published, and no later ones."""

from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import transaction
from django.utils import timezone

from lightbus_django import BusError, listens_to, on_commit
from lightbus_django.bus import first_publications as republished
from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import get_settings
from lightbus_django.events.ids import uuid7
from lightbus_django.events.times import stream_time
from lightbus_django.listening import group_records
from lightbus_django.listening.consumer import Consumer
from lightbus_django.listening.registry import registry
from lightbus_django.models import ConsumerGroup, OutboxEvent, ProcessedEvent
from tests.app.models import Effect
from tests.conftest import drain, eventually
from tests.servers import Server

KEY = "shop.*:stream"
FIRST = republished.key(KEY)
GROUP = "price-monitor-record"

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


def declare(**options):
    """Declare a listener that records the numbers of events."""

    @listens_to("shop.order_placed", listener_name="record", **options)
    def record(events, number: int = 0):
        for event in events if isinstance(events, list) else [events]:
            Effect.objects.create(number=event.payload["number"])


def effects():
    return list(Effect.objects.order_by("id").values_list("number", flat=True))


def place(*numbers):
    return [on_commit("shop.order_placed", number=number) for number in numbers]


@pytest.fixture
def mark(housekeeping):
    """Let the relay mark what has been published."""

    def mark():
        while housekeeping().relay():
            pass
        assert not OutboxEvent.objects.exclude(due_at=None).exists()

    return mark


def by_command(mark):
    call_command("lightbus_republish", "--since", "1h")


def in_the_admin(mark):
    OutboxEvent.objects.publish_again()
    mark()


both_ways = pytest.mark.parametrize("again", [by_command, in_the_admin])


@both_ways
@pytest.mark.parametrize("lost", [True, False], ids=["lost", "kept"])
@pytest.mark.parametrize("options", [{}, {"idempotent": False}, {"batch": True}], ids=["inbox", "no inbox", "batch"])
def test_a_new_listener_gets_nothing_that_was_published_before_it_started(r, consume, mark, again, lost, options):
    place(1, 2)
    declare(**options)
    consumer = consume()
    place(3)
    mark()
    if lost:
        r.flushdb()
    again(mark)
    drain(consumer)
    assert set(effects()) == {3}
    assert r.xpending(KEY, GROUP)["pending"] == 0


@both_ways
def test_nor_does_one_that_starts_between_a_loss_and_the_republish(r, consume, mark, again):
    place(1, 2)
    mark()
    r.flushdb()
    declare()
    consumer = consume()
    again(mark)
    place(3)
    drain(consumer)
    assert effects() == [3]


@both_ways
def test_nor_does_a_process_that_starts_later(r, consume, mark, again):
    place(1)
    declare()
    consume()
    place(2)
    mark()
    r.flushdb()
    again(mark)
    drain(consume(process_name="started later"))
    assert effects() == [2]


def test_pending_events_of_a_crashed_process_are_skipped_as_well(r, consume, mark):
    place(1)
    declare()
    consumer = consume()
    mark()
    by_command(mark)
    ((_, entries),) = r.xreadgroup(GROUP, "worker", {KEY: ">"})
    assert entries
    drain(consume())
    assert effects() == []
    assert r.xpending(KEY, GROUP)["pending"] == 0
    drain(consumer)
    assert effects() == []


@both_ways
def test_the_age_of_an_event_counts_from_its_publication_not_from_the_call(r, consume, mark, again):
    """A transaction may take long, and a relay may wait."""
    declare(idempotent=False)
    old = uuid7()
    consumer = consume()
    OutboxEvent.objects.create(id=old, event_name="shop.order_placed", payload='{"number": 1}', due_at=timezone.now())
    mark()
    drain(consumer)
    assert effects() == [1]
    again(mark)
    drain(consumer)
    assert effects() == [1, 1]
    r.flushdb()
    again(mark)
    drain(consumer)
    assert effects() == [1, 1, 1]


@both_ways
@pytest.mark.parametrize("idempotent", [True, False])
def test_so_a_listener_that_starts_during_a_transaction_gets_its_events(r, consume, mark, again, idempotent):
    place(1)
    declare(idempotent=idempotent)
    with transaction.atomic():
        place(2)
        consumer = consume()
        place(3)
    mark()
    r.flushdb()
    again(mark)
    drain(consumer)
    assert effects() == [2, 3]


@both_ways
@pytest.mark.parametrize("start", ["beginning", "time", "id"])
def test_every_kind_of_start(r, consume, mark, again, start):
    place(1)
    mark()
    eventually(lambda: timezone.now() > stream_time(r.xrevrange(KEY, count=1)[0][0]) + timedelta(milliseconds=2))
    after = timezone.now()
    behind = f"{int(after.timestamp() * 1000)}-0"
    place(2)
    mark()
    declare(start={"beginning": "beginning", "time": after, "id": behind}[start])
    consumer = consume()
    if start == "beginning":
        drain(consumer)
    r.flushdb()
    again(mark)
    drain(consumer)
    assert effects() == ([1, 2] if start == "beginning" else [2])


def test_a_group_of_the_previous_version_gets_everything(r, consume, mark):
    place(1)
    declare()
    r.xgroup_create(KEY, GROUP, "$")
    consumer = consume()
    row = ConsumerGroup.objects.get()
    assert (row.start_id, row.starts_at, row.consumer_group, row.stream) == ("", None, GROUP, KEY)
    mark()
    by_command(mark)
    drain(consumer)
    assert effects() == [1]


def test_events_of_other_services_are_not_looked_up(r, consume, mark, monkeypatch):
    """Neither are our events that were fired after the listener started."""
    asked = []
    monkeypatch.setattr(republished, "look_up", lambda *arguments: asked.append(arguments) or [])
    declare()
    consumer = consume()
    entry = {"id": "theirs", "api_name": "shop", "event_name": "order_placed", "version": 1, ":number": 1}
    r.xadd(KEY, entry)
    consumer.offsets.records.starts[KEY] = group_records.Start("1-0", timezone.now() - timedelta(days=1))
    place(2)
    drain(consumer)
    assert effects() == [1, 2]
    assert not asked


def test_first_publications_expire(r, mark, lightbus):
    lightbus(INBOX_RETENTION=700_000)
    place(1)
    mark()
    by_command(mark)
    assert 699_000 < r.ttl(FIRST) <= 700_000
    assert set(r.xrange(KEY)[-1][1]) == {"id", "api_name", "event_name", "version", ":number"}


class TestWhatRedisRefuses:
    """The user may only have the permissions that the previous version needed, or the key has another type."""

    @pytest.fixture
    def denied(self, lightbus):
        with Server() as server, server.client() as client:
            lightbus(URL=server.url)

            def deny(*commands):
                client.execute_command("ACL", "SETUSER", "default", *(f"-{command}" for command in commands))

            yield deny, server

    def test_events_that_can_not_be_republished_wait_without_holding_up_others(self, r, housekeeping):
        place(1)
        housekeeping().relay()
        again = OutboxEvent.objects.get()
        r.set(FIRST, "in the way")
        OutboxEvent.objects.publish_again()
        OutboxEvent.objects.create(event_name="shop.order_placed", payload='{"number": 2}', due_at=timezone.now())
        housekeeping().relay()
        assert [fields[":number"] for _, fields in r.xrange(KEY)] == ["1", "2"]
        again.refresh_from_db()
        assert again.due_at > timezone.now()
        assert FIRST in again.error
        r.delete(FIRST)
        OutboxEvent.objects.exclude(due_at=None).update(due_at=timezone.now())
        housekeeping().relay()
        again.refresh_from_db()
        assert (again.due_at, again.error) == (None, "")
        assert r.hlen(FIRST) == 1

    def test_a_listener_waits_until_the_key_can_be_read(self, r, consume):
        declare()
        consumer = consume()
        r.set(FIRST, "in the way")
        place(1)
        with pytest.raises(BusError, match="republished"):
            consumer.step(block=0)
        r.delete(FIRST)
        drain(consumer)
        assert effects() == [1]
        assert ProcessedEvent.objects.count() == 1
        assert r.xpending(KEY, GROUP)["pending"] == 0

    @pytest.mark.parametrize(
        ("denied_commands", "is_warned"),
        [
            pytest.param(["hmget", "exists", "time"], True, id="as previous versions needed"),
            pytest.param(["hmget", "time"], False, id="nothing was published again, so nothing is looked up"),
        ],
    )
    def test_a_listener_goes_on_without_permission(self, denied, denied_commands, is_warned, caplog):
        deny, server = denied
        declare()
        redis_client = RedisClient(server.url, timeout=60, retries=0)
        consumer = Consumer(
            next(iter(registry)),
            service_name="price-monitor",
            process_name="worker",
            settings=get_settings(),
            client=redis_client,
        )
        deny(*denied_commands)
        consumer.step(block=0)
        place(1)
        drain(consumer)
        redis_client.close()
        assert effects() == [1]
        assert ("denies its user access to '{shop.*:stream}:republished'" in caplog.text) == is_warned
