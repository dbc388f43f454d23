"""One event's story: an outcome for each listener that wants it, and for each group that knows of it."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.db import OperationalError
from django.utils import timezone

from lightbus_django import fire, listens_to, on_commit
from lightbus_django.bus.heartbeats import ListenerSign
from lightbus_django.events.ids import uuid7
from lightbus_django.models import ConsumerGroup, FailedEvent, OutboxEvent, ProcessedEvent
from lightbus_django.operating import event_records, outcomes
from lightbus_django.operating.pausing import pause
from lightbus_django.operating.story import tell
from tests.app.models import Effect
from tests.conftest import drain
from tests.listening.streams import KEY, fetch

from .conftest import GROUP

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


def outcome(message, **later):
    """Return the only outcome of an event."""
    (found,) = tell(message.id, datetime.now(UTC) + timedelta(**later)).outcomes
    return found


class TestWithoutARow:
    """Of an event that the outbox does not have, as much is said of who fired it as is known."""

    def origin(self, event_id, **later):
        return tell(event_id, datetime.now(UTC) + timedelta(**later)).origin

    def test_one_that_cannot_have_been_pruned(self, record, consume, lightbus):
        consume()
        event_id = fire("shop.order_placed", number=1).id
        assert "it was fired with fire(), or by another service; it is in shop.*:stream as " in self.origin(event_id)
        lightbus(OUTBOX_RETENTION=3600.0)
        assert "it was fired with fire(), by another service, or was pruned; " in self.origin(event_id, hours=2)

    def test_which_services_fire_it(self, record, consume, beat):
        consume()
        beat(fires=["shop.order_placed"])
        beat("web1", service="shop", fires=["shop.order_placed"])
        beat("web2", service="crm", fires=["crm.customer_moved"])
        event_id = fire("shop.order_placed", number=1).id
        assert "or by another service (shop fires shop.order_placed); " in self.origin(event_id)
        beat("web2", service="crm", fires=["crm.customer_moved", "shop.order_placed"])
        assert "(crm, shop fire shop.order_placed)" in self.origin(event_id)


class TestHandled:
    def test_by_whom_and_how_long_after(self, record, consume):
        consumer = consume(process_name="web1")
        message = fire("shop.order_placed", number=1)
        drain(consumer)
        found = outcome(message)
        assert (found.state, found.group, found.listener, found.process) == (
            outcomes.HANDLED,
            GROUP,
            "record",
            "web1",
        )
        assert re.fullmatch(r"Handled by web1 at \S+ \S+, \S+ s after it was published", found.text)
        assert found.at == ProcessedEvent.objects.get().processed_at

    def test_in_a_later_attempt(self, record, consume):
        consumer = consume()
        message = fire("shop.order_placed", number=1, broken="x")
        drain(consumer)
        failed = FailedEvent.objects.get()
        failed.fields = failed.fields.replace("broken", "mended")
        failed.next_attempt_at = timezone.now()
        failed.save()
        consumer.retries_due.set()
        drain(consumer)
        found = outcome(message)
        assert (found.state, found.attempts) == (outcomes.HANDLED, 2)
        assert found.text.endswith(", in attempt 2")

    def test_rows_of_earlier_versions_say_less(self, record, consume):
        consumer = consume()
        message = fire("shop.order_placed", number=1)
        drain(consumer)
        ProcessedEvent.objects.update(process_name="", stream_id="", attempts=None)
        assert re.fullmatch(r"Handled at \S+ \S+", outcome(message).text)

    def test_without_keys_nothing_is_recorded(self, listeners, consume):
        @listens_to("shop.order_placed", idempotent=False)
        def record(event, number): ...

        consumer = consume()
        message = fire("shop.order_placed", number=1)
        drain(consumer)
        found = outcome(message)
        assert (found.state, found.process) == (outcomes.HANDLED, "")
        assert "idempotent=False" in found.text

    def test_by_a_listener_that_is_gone(self, record, listeners, consume):
        consumer = consume()
        message = fire("shop.order_placed", number=1)
        drain(consumer)
        for each in list(listeners):
            listeners.remove(each)
        found = outcome(message)
        assert (found.state, found.group, found.listener) == (outcomes.HANDLED, GROUP, "")

    def test_while_we_look(self, record, consume, monkeypatch):
        """It is read from the database first, then handled, then Redis says that it is acknowledged."""
        consumer = consume()
        message = fire("shop.order_placed", number=1)
        find_entry = event_records.EventRecords._find_entry

        def slow(self):
            drain(consumer)
            find_entry(self)

        monkeypatch.setattr(event_records.EventRecords, "_find_entry", slow)
        assert outcome(message).state == outcomes.HANDLED


class TestOnItsWay:
    def test_in_hand(self, r, record, consume, beat):
        consume()
        message = fire("shop.order_placed", number=1)
        fetch(r, "web1", group=GROUP)
        found = outcome(message)
        assert (found.state, found.process) == (outcomes.IN_HAND, "web1")
        assert found.text == "Read by web1, not handled yet"
        sign = ListenerSign(group=GROUP, doing="running the handler", doing_for=70, event_id=message.id)
        beat("web1", listeners=[sign])
        assert outcome(message).text == "Read by web1, which is running the handler for 70 s"

    def test_waiting_behind_others(self, record, consume):
        consume()
        first = fire("shop.order_placed", number=0)
        for number in range(3):
            fire("shop.order_placed", number=number)
            fire("shop.parcel_delivered", number=number)
        message = fire("shop.order_placed", number=4)
        found = outcome(message)
        assert (found.state, found.text) == (outcomes.WAITING, "Not read yet; 4 events are before it")
        assert outcome(first).text == "Not read yet; 0 events are before it"

    def test_waiting_for_a_paused_listener(self, record, consume):
        consume()
        pause("record", "Ada")
        found = outcome(fire("shop.order_placed", number=1))
        assert (found.state, found.text) == (outcomes.PAUSED, "Waits, because the listener was paused by Ada")

    def test_waiting_for_a_listener_that_never_ran(self, record):
        found = outcome(fire("shop.order_placed", number=1))
        assert found.state == outcomes.WAITING
        assert "No process has run this listener yet" in found.text

    def test_waiting_for_a_group_that_redis_lost(self, r, record, consume):
        consume()
        message = fire("shop.order_placed", number=1)
        r.xgroup_destroy(KEY, GROUP)
        assert outcome(message).text == "Redis has lost the consumer group; lightbus_listen creates it again"

    def test_not_published_yet(self, record, consume, lightbus):
        consume()
        lightbus(URL="redis://127.0.0.1:1", REDIS_TIMEOUT=1)
        message = on_commit("shop.order_placed", number=1)
        story = tell(message.id)
        assert not story.is_published
        assert "not published" in story.origin
        assert [each.text for each in story.outcomes] == ["Waits to be published"]
        assert len(story.problems) == 1


class TestFailed:
    @pytest.fixture
    def message(self, record, consume):
        consumer = consume()
        message = fire("shop.order_placed", number=1, broken="the reason")
        drain(consumer)
        return message

    def test_retrying(self, message):
        found = outcome(message)
        failed = FailedEvent.objects.get()
        assert (found.state, found.attempts, found.failed_id) == (outcomes.RETRYING, 1, failed.pk)
        at = f"{failed.next_attempt_at.astimezone():%H:%M:%S}"
        assert found.text == f"1 of 5 attempts made, the next one is at {at}. Last error: ValueError: the reason"
        assert "the next one is due: " in outcome(message, minutes=5).text

    def test_being_retried(self, message):
        FailedEvent.objects.update(attempts=2, claimed_until=timezone.now() + timedelta(minutes=1))
        assert outcome(message).text.startswith("2 of 5 attempts made, the last one is being made at this moment. Last")
        assert "being made" not in outcome(message, minutes=2).text

    def test_retrying_but_paused_or_without_a_listener(self, message, listeners):
        pause("record", "Ada")
        assert "but the listener was paused by Ada" in outcome(message).text
        ConsumerGroup.objects.resume()
        for each in list(listeners):
            listeners.remove(each)
        assert "but this service has no listener for the group" in outcome(message).text

    def test_a_dead_letter(self, message):
        FailedEvent.objects.update(next_attempt_at=None, attempts=5)
        found = outcome(message)
        assert found.state == outcomes.DEAD_LETTER
        assert re.fullmatch(r"Dead letter since \S+ \S+, in attempt 5: ValueError: the reason", found.text)

    def test_discarded_by_whom(self, message):
        FailedEvent.objects.discard("Ada", "a test order")
        found = outcome(message)
        assert found.state == outcomes.DISCARDED
        assert re.fullmatch(r"Discarded by Ada at \S+ \S+: a test order", found.text)


class TestNotDelivered:
    def test_older_than_the_listener(self, listeners, consume):
        message = fire("shop.order_placed", number=1)

        @listens_to("shop.order_placed")
        def late(event): ...

        consume()
        found = outcome(message)
        assert found.state == outcomes.NOT_WANTED
        assert "Published before the listener's start" in found.text

    def test_acknowledged_without_a_record(self, record, consume):
        consumer = consume()
        message = fire("shop.order_placed", number=1)
        drain(consumer)
        ProcessedEvent.objects.all().delete()
        assert outcome(message).state == outcomes.MISSING
        assert outcome(message, days=31).state == outcomes.UNKNOWN
        ConsumerGroup.objects.update(start_id="", starts_at=None, began_at=timezone.now() + timedelta(hours=1))
        assert outcome(message).state == outcomes.UNKNOWN

    def test_trimmed_before_it_was_read(self, r, record, consume, housekeeping):
        consume()
        message = on_commit("shop.order_placed", number=1)
        housekeeping().relay()
        r.xtrim(KEY, 0)
        story = tell(message.id)
        assert "since then it was trimmed" in story.origin
        assert [each.state for each in story.outcomes] == [outcomes.MISSING]


class TestOtherServices:
    def test_what_redis_knows_of_their_groups(self, r, record, consume):
        consumer = consume()
        for group in ("a-not-read", "b-pending", "c-acknowledged"):
            r.xgroup_create(KEY, group, "0", mkstream=True)
        message = fire("shop.order_placed", number=1)
        fetch(r, "theirs", group="b-pending")
        r.xack(KEY, "c-acknowledged", *fetch(r, "theirs", group="c-acknowledged"))
        drain(consumer)
        ours, *others = tell(message.id).outcomes
        assert ours.state == outcomes.HANDLED
        assert [(each.group, each.state, each.listener) for each in others] == [
            ("a-not-read", outcomes.WAITING, ""),
            ("b-pending", outcomes.IN_HAND, ""),
            ("c-acknowledged", outcomes.UNKNOWN, ""),
        ]


def test_a_listener_of_this_service_that_does_not_want_it_is_left_out(r, record, listeners, consume):
    consume()
    message = fire("shop.parcel_delivered", number=1)
    assert tell(message.id).outcomes == []


class TestOrigin:
    def test_of_on_commit(self, record, housekeeping):
        message = on_commit("shop.order_placed", number=1)
        story = tell(message.id)
        assert story.origin.startswith("Fired with on_commit() by price-monitor, database 'default'; published as ")
        assert story.origin.endswith("a relay has not marked its row yet.")
        assert (story.name, story.payload, story.is_published) == ("shop.order_placed", {"number": 1}, True)
        housekeeping().relay()
        story = tell(message.id)
        assert story.origin.endswith(f"published as {story.stream_id}.")
        assert story.outbox_database == "default"
        assert abs(story.published_at - story.fired_at) < timedelta(seconds=20)

    def test_of_fire(self, record):
        message = fire("shop.order_placed", number=1)
        story = tell(message.id)
        assert story.origin.startswith("The outbox has no row of it")
        assert story.origin.endswith(f"it is in {KEY} as {story.stream_id}.")
        assert story.payload == {"number": 1}

    def test_waiting_for_its_process_then_for_the_relay(self):
        row = OutboxEvent.objects.create(event_name="shop.order_placed", payload="{}", due_at=timezone.now())
        assert "is lightbus_listen running?" in tell(str(row.pk), timezone.now() + timedelta(minutes=1)).origin
        OutboxEvent.objects.update(due_at=timezone.now() + timedelta(seconds=10))
        assert "not published yet; its process has until" in tell(str(row.pk)).origin

    def test_refused(self):
        row = OutboxEvent.objects.create(
            event_name="shop.order_placed", payload="{}", due_at=timezone.now(), error="It is too large."
        )
        assert "not published: It is too large. It is tried again at" in tell(str(row.pk)).origin

    def test_published_again(self, record, housekeeping):
        message = on_commit("shop.order_placed", number=1)
        housekeeping().relay()
        OutboxEvent.objects.publish_again()
        assert tell(message.id).origin.endswith("published, and will be published again by a relay.")


def test_an_unknown_event(record):
    assert tell(str(uuid7())) is None
    assert tell("nonsense") is None
    assert tell("") is None


def test_an_id_of_another_kind(r, record, consume):
    consumer = consume()
    r.xadd(KEY, {"id": "Ünï code", "api_name": "shop", "event_name": "order_placed", ":number": "1", "version": "1"})
    drain(consumer)
    assert Effect.objects.count() == 1
    assert [each.state for each in tell("Ünï code").outcomes] == [outcomes.HANDLED]


def test_a_database_that_does_not_answer(record, consume, monkeypatch):
    consumer = consume()
    message = fire("shop.order_placed", number=1)
    drain(consumer)
    has_outbox = event_records.has_outbox

    def away(alias):
        if alias == "other":
            raise OperationalError("server closed the connection")
        return has_outbox(alias)

    monkeypatch.setattr(event_records, "has_outbox", away)
    story = tell(message.id)
    assert [each.state for each in story.outcomes] == [outcomes.HANDLED]
    assert len(story.problems) == 1
