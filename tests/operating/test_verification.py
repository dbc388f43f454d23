"""Proof of delivery: every count, and nothing that is on its way is called missing."""

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from lightbus_django import fire, listens_to, on_commit
from lightbus_django.bus import entries
from lightbus_django.events.ids import event_key
from lightbus_django.listening.registry import registry
from lightbus_django.models import ConsumerGroup, FailedEvent, OutboxEvent, ProcessedEvent
from lightbus_django.operating import deliveries, fired_events
from lightbus_django.operating.verification import Verification
from tests.app.models import Effect
from tests.conftest import drain
from tests.listening.streams import KEY, effects, fetch

from .conftest import GROUP

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


def verify(*, hours=1, until=None, replay=False, advance=lambda count: None):
    """Verify the only listener; return what is not 0."""
    now = datetime.now(UTC)
    since, until = now - timedelta(hours=hours), until or now + timedelta(minutes=1)
    (found,) = Verification(list(registry), since=since, until=until, replay=replay).run(advance)
    names = "fired published handled waiting failed discarded before_start unproven missing replayed".split()
    return {name: value for name in names if (value := getattr(found, name))}


def missing_ids():
    now = datetime.now(UTC)
    span = {"since": now - timedelta(hours=1), "until": now + timedelta(minutes=1)}
    (found,) = Verification(list(registry), **span).run()
    return found.missing_ids


@pytest.fixture(params=["fire", "on_commit"])
def send(request, housekeeping):
    """Fire an event, by `fire` or by `on_commit` with its row marked."""

    def send(**payload):
        message = fire("shop.order_placed", **payload) if request.param == "fire" else None
        if message is None:
            message = on_commit("shop.order_placed", **payload)
            housekeeping().relay()
        return message

    return send


def lose_key(message):
    assert ProcessedEvent.objects.filter(event_id=event_key(message.id)).delete()[0] == 1


class TestCounts:
    def test_handled(self, record, consume, send):
        consumer = consume()
        for number in range(5):
            send(number=number)
        drain(consumer)
        assert verify() == {"fired": 5, "published": 5, "handled": 5}

    def test_of_both_ways_each_event_counts_once(self, record, consume):
        consumer = consume()
        fire("shop.order_placed", number=1)
        on_commit("shop.order_placed", number=2)
        drain(consumer)
        assert verify() == {"fired": 2, "published": 2, "handled": 2}

    def test_waiting_and_in_hand(self, r, record, consume, send):
        consume()
        for number in range(5):
            send(number=number)
        fetch(r, "web1", count=2, group=GROUP)
        assert verify() == {"fired": 5, "published": 5, "waiting": 5}

    def test_not_published(self, record, consume):
        consume()
        OutboxEvent.objects.create(event_name="shop.order_placed", payload='{"number":1}', due_at=timezone.now())
        assert verify() == {"fired": 1, "waiting": 1}

    def test_of_a_listener_that_never_ran_all_events_wait(self, record, send):
        send(number=1)
        assert verify() == {"fired": 1, "published": 1, "waiting": 1}

    def test_failed_and_discarded(self, record, consume, send):
        consumer = consume()
        for number in range(3):
            send(number=number, broken="x")
        drain(consumer)
        FailedEvent.objects.filter(pk=FailedEvent.objects.earliest("pk").pk).discard("Ada")
        FailedEvent.objects.filter(pk=FailedEvent.objects.latest("pk").pk).update(next_attempt_at=None)
        assert verify() == {"fired": 3, "published": 3, "failed": 2, "discarded": 1}

    def test_before_the_listeners_start(self, listeners, consume, send):
        send(number=1)

        @listens_to("shop.order_placed")
        def late(event, number): ...

        consume()
        assert verify() == {"fired": 1, "published": 1, "before_start": 1}

    def test_before_its_start_and_published_again(self, r, listeners, consume, housekeeping):
        message = on_commit("shop.order_placed", number=1)
        housekeeping().relay()

        @listens_to("shop.order_placed")
        def late(event, number): ...

        consumer = consume()
        OutboxEvent.objects.publish_again()
        housekeeping().relay()
        drain(consumer)
        assert r.xlen(KEY) == 2
        OutboxEvent.objects.all().delete()  # as if another service had fired it
        assert verify() == {"fired": 1, "published": 1, "before_start": 1}
        assert ProcessedEvent.objects.filter(event_id=message.id).count() == 0

    def test_events_of_other_names_and_times_are_not_counted(self, record, consume, send):
        consumer = consume()
        fire("shop.parcel_delivered", number=1)
        send(number=1)
        drain(consumer)
        assert verify(hours=-1) == {}
        assert verify(until=datetime.now(UTC) - timedelta(minutes=1)) == {}

    def test_a_row_that_a_replica_has_as_well_counts_once(self, record, consume, housekeeping):
        consumer = consume()
        for number in range(3):
            on_commit("shop.order_placed", number=number)
        housekeeping(consumer).relay()
        OutboxEvent.objects.using("other").bulk_create(OutboxEvent.objects.all()[:2])
        drain(consumer)
        assert verify() == {"fired": 3, "published": 3, "handled": 3}

    def test_of_two_databases(self, listeners, consume, housekeeping):
        @listens_to("shop.order_placed", using="other", start="beginning")
        def there(event, number, broken=""):
            if broken:
                raise ValueError

        consumer = consume()
        on_commit("shop.order_placed", number=1)
        on_commit.using("other")("shop.order_placed", number=2)
        on_commit.using("other")("shop.order_placed", number=3, broken="x")
        housekeeping(consumer).relay()
        assert verify() == {"fired": 3, "published": 3, "waiting": 3}
        drain(consumer)
        assert verify() == {"fired": 3, "published": 3, "handled": 2, "failed": 1}
        ProcessedEvent.objects.using("other").exclude(
            event_id__in=FailedEvent.objects.using("other").values("event_id")
        ).delete()
        assert verify(replay=True) == {"fired": 3, "published": 3, "failed": 1, "missing": 2, "replayed": 2}
        assert FailedEvent.objects.using("other").count() == 3
        assert not FailedEvent.objects.exists()

    def test_a_row_that_is_not_marked_yet(self, record, consume):
        consumer = consume()
        on_commit("shop.order_placed", number=1)
        assert verify() == {"fired": 1, "waiting": 1}
        drain(consumer)
        assert verify() == {"fired": 1, "published": 1, "handled": 1}

    def test_over_several_chunks_with_progress(self, record, consume, monkeypatch, housekeeping):
        monkeypatch.setattr(fired_events, "CHUNK", 3)
        monkeypatch.setattr(entries, "SCAN_SIZE", 20)
        consumer = consume()
        for number in range(50):
            fire("shop.order_placed", number=number)
        for number in range(10):
            on_commit("shop.order_placed", number=number)
        housekeeping().relay()
        drain(consumer)
        seen = []
        assert verify(advance=seen.append) == {"fired": 60, "published": 60, "handled": 60}
        assert sum(seen) == 60
        assert len(seen) > 5


class TestMissing:
    def test_a_key_that_somebody_deleted(self, record, consume, send):
        consumer = consume()
        messages = [send(number=number) for number in range(3)]
        drain(consumer)
        lose_key(messages[1])
        assert verify() == {"fired": 3, "published": 3, "handled": 2, "missing": 1}
        assert missing_ids() == [messages[1].id]

    def test_what_was_trimmed_unread_or_pending(self, r, record, consume, send):
        consume()
        for number in range(3):
            send(number=number)
        fetch(r, "web1", count=1, group=GROUP)
        trimmed = r.xtrim(KEY, 0)
        found = verify()
        if found:  # of events that were fired with `fire` no trace is left
            assert found == {"fired": trimmed, "published": trimmed, "missing": trimmed}

    def test_what_redis_lost(self, r, record, consume, housekeeping):
        consume()
        on_commit("shop.order_placed", number=1)
        housekeeping().relay()
        r.flushdb()
        assert verify() == {"fired": 1, "published": 1, "missing": 1}
        drain(consume())
        assert verify() == {"fired": 1, "published": 1, "missing": 1}

    def test_what_redis_lost_and_was_published_again(self, r, record, consume, housekeeping):
        consumer = consume()
        for number in range(2):
            on_commit("shop.order_placed", number=number)
        housekeeping(consumer).relay()
        r.flushdb()
        assert verify() == {"fired": 2, "published": 2, "missing": 2}
        consumer = consume()
        OutboxEvent.objects.publish_again()
        assert verify() == {"fired": 2, "waiting": 2}
        housekeeping(consumer).relay()
        assert verify() == {"fired": 2, "published": 2, "waiting": 2}
        drain(consumer)
        assert verify() == {"fired": 2, "published": 2, "handled": 2}

    def test_is_not_what_cannot_be_proved(self, record, consume, send, lightbus):
        consumer = consume()
        message = send(number=1)
        drain(consumer)
        lose_key(message)
        unproven = {"fired": 1, "published": 1, "unproven": 1}
        began_at = timezone.now() + timedelta(hours=1)
        ConsumerGroup.objects.update(start_id="", starts_at=None, began_at=began_at)
        assert verify() == unproven
        ConsumerGroup.objects.update(start_id="0")
        assert verify() == {"fired": 1, "published": 1, "missing": 1}
        lightbus(INBOX_RETENTION=1e-6, OUTBOX_RETENTION=1e-6, STREAM_RETENTION=0)
        assert verify() == unproven

    def test_is_nothing_of_a_listener_without_keys(self, listeners, consume, send):
        @listens_to("shop.order_placed", idempotent=False)
        def record(event, number): ...

        consumer = consume()
        send(number=1)
        drain(consumer)
        send(number=2)
        assert verify() == {"fired": 2, "published": 2, "unproven": 1, "waiting": 1}

    def test_is_nothing_that_is_handled_while_it_looks(self, record, consume, monkeypatch):
        """Keys are read first, so that the group's position is later than they are."""
        consumer = consume()
        for number in range(20):
            fire("shop.order_placed", number=number)
        read_positions = deliveries.read_positions

        def slow(*args):
            drain(consumer)
            return read_positions(*args)

        monkeypatch.setattr(deliveries, "read_positions", slow)
        assert verify() == {"fired": 20, "published": 20, "handled": 20}

    def test_is_nothing_that_is_fired_and_handled_while_it_looks(self, record, consume, monkeypatch, housekeeping):
        monkeypatch.setattr(fired_events, "CHUNK", 2)
        consumer = consume()

        def go_on(count=0):
            on_commit("shop.order_placed", number=1)
            fire("shop.order_placed", number=1)
            housekeeping().relay()
            consumer.step(block=0)

        for _ in range(5):
            go_on()
        monkeypatch.setattr(deliveries, "sort", _with(go_on, deliveries.sort))
        assert "missing" not in verify(until=datetime.now(UTC) + timedelta(milliseconds=300), advance=go_on)

    def test_rows_of_the_previous_version_have_no_stream_ids(self, r, record, consume, housekeeping):
        consumer = consume()
        for number in range(3):
            on_commit("shop.order_placed", number=number)
        housekeeping().relay()
        OutboxEvent.objects.update(stream_id="")
        assert verify() == {"fired": 3, "published": 3, "waiting": 3}
        drain(consumer)
        assert verify() == {"fired": 3, "published": 3, "handled": 3}
        ProcessedEvent.objects.all().delete()
        assert verify() == {"fired": 3, "published": 3, "missing": 3}


def _with(before, work):
    def run(*args, **options):
        before()
        return work(*args, **options)

    return run


class TestReplay:
    @pytest.fixture
    def lost(self, record, consume, send):
        """A consumer, and an event that it never handled."""
        consumer = consume()
        messages = [send(number=number) for number in range(3)]
        drain(consumer)
        lose_key(messages[1])
        Effect.objects.filter(number=1).delete()
        return consumer, messages[1]

    def test_hands_it_to_the_listener_which_handles_it_once(self, lost):
        consumer, message = lost
        assert verify(replay=True) == {"fired": 3, "published": 3, "handled": 2, "missing": 1, "replayed": 1}
        assert verify(replay=True) == {"fired": 3, "published": 3, "handled": 2, "failed": 1}
        consumer.retries_due.set()
        drain(consumer)
        assert sorted(effects()) == [0, 1, 2]
        assert verify() == {"fired": 3, "published": 3, "handled": 3}
        assert ProcessedEvent.objects.get(event_id=message.id).process_name == "worker"

    def test_though_its_entry_is_delivered_after_all(self, lost, r):
        consumer, message = lost
        verify(replay=True)
        (fields,) = [fields for _, fields in r.xrange(KEY) if fields["id"] == message.id]
        r.xadd(KEY, fields)
        drain(consumer)
        consumer.retries_due.set()
        drain(consumer)
        r.xadd(KEY, fields)
        drain(consumer)
        assert sorted(effects()) == [0, 1, 2]

    def test_but_not_what_has_been_handled_in_the_meantime(self, lost, r, monkeypatch):
        consumer, message = lost
        (fields,) = [fields for _, fields in r.xrange(KEY) if fields["id"] == message.id]

        def deliver():
            r.xadd(KEY, fields)
            drain(consumer)

        monkeypatch.setattr(Verification, "_count_missing", _with(deliver, Verification._count_missing))
        assert "replayed" not in verify(replay=True)
        assert not FailedEvent.objects.exists()
        assert sorted(effects()) == [0, 1, 2]

    def test_and_to_no_other_listener(self, lost, consume):
        @listens_to("shop.order_placed", start="beginning")
        def other(event, number):
            Effect.objects.create(name="other", number=number)

        (listener,) = [each for each in registry if each.listener_name == "other"]
        drain(consume(listener))
        assert Effect.objects.filter(name="other").count() == 3
        now = datetime.now(UTC)
        span = {"since": now - timedelta(hours=1), "until": now + timedelta(hours=1)}
        results = Verification(list(registry), **span, replay=True).run()
        assert {result.listener: result.replayed for result in results} == {"record": 1, "other": 0}
        assert [failed.consumer_group for failed in FailedEvent.objects.all()] == [GROUP]

    def test_what_redis_lost_comes_from_the_outbox(self, r, record, consume, housekeeping):
        consume()
        on_commit("shop.order_placed", number=7)
        housekeeping().relay()
        r.flushdb()
        assert verify(replay=True)["replayed"] == 1
        consumer = consume()
        consumer.retries_due.set()
        drain(consumer)
        assert effects() == [7]

    def test_what_no_record_has_any_more_stays_missing(self, r, record, consume, housekeeping):
        consumer = consume()
        fire("shop.order_placed", number=1)
        drain(consumer)
        ProcessedEvent.objects.all().delete()
        ((stream_id, _),) = r.xrange(KEY)

        def trim():
            r.xdel(KEY, stream_id)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Verification, "_count_missing", _with(trim, Verification._count_missing))
            assert verify(replay=True) == {"fired": 1, "published": 1, "missing": 1}
