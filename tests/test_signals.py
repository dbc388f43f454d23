"""The signals: when they are sent, by whom, and with what. Their names and arguments are a contract."""

import asyncio
import time

import pytest
from django.db import connection, transaction
from django.utils import timezone

from lightbus_django import (
    EventMessage,
    UnreadableEvent,
    fire,
    fire_many,
    listens_to,
    on_commit,
    on_commit_many,
    signals,
)
from lightbus_django.bus.group_reads import Entry
from lightbus_django.events.ids import uuid7
from lightbus_django.models import FailedEvent, OutboxEvent
from lightbus_django.running import redis_jobs
from tests.app.models import Effect
from tests.conftest import drain
from tests.firing.helpers import make_due

KEY = "shop.*:stream"
GROUP = "price-monitor-record"
OF_LISTENER = {"listener_name": "record", "consumer_group": GROUP}

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


@pytest.fixture
def sent():
    """The signals that were sent: name, sender, and arguments."""
    found = []
    receivers = []
    for name in signals.__all__:

        def receive(signal, sender, name=name, **arguments):
            found.append((name, sender, arguments))

        receivers.append(receive)
        getattr(signals, name).connect(receive)
    yield found
    for name, receive in zip(signals.__all__, receivers, strict=True):
        getattr(signals, name).disconnect(receive)


@pytest.fixture
def record(listeners):
    """A listener that fails if the event says so."""

    @listens_to("shop.order_placed", start="beginning")
    def record(event, number: int, fail: bool = False):
        Effect.objects.create(number=number)
        if fail:
            raise ValueError(f"{number} is wrong")

    return record


def names(sent):
    return [name for name, _, _ in sent]


# --- Published ----------------------------------------------------------------------------------


def test_what_is_fired_is_published(sent):
    one = fire("shop.order_placed", number=1)
    two, three = fire_many([("shop.order_placed", {"number": 2}), ("shop.order_paid", {})])
    assert sent == [
        (
            "event_published",
            EventMessage,
            {"event_name": event.name, "event_id": event.id, "is_repeated": False},
        )
        for event in (one, two, three)
    ]


def test_what_is_committed_is_published_after_the_commit(sent):
    with transaction.atomic():
        one = on_commit("shop.order_placed", number=1)
        (two,) = on_commit_many([("shop.order_placed", {"number": 2})])
        assert sent == []
    assert [(sender, arguments["event_id"], arguments["is_repeated"]) for _, sender, arguments in sent] == [
        (OutboxEvent, one.id, False),
        (OutboxEvent, two.id, False),
    ]


def test_what_is_rolled_back_or_refused_is_not_published(sent, r):
    with transaction.atomic():
        on_commit("shop.order_placed", number=1)
        transaction.set_rollback(True)
    r.set(KEY, "in the way")
    on_commit("shop.order_placed", number=2)
    assert sent == []


def test_what_is_relayed_is_published_and_again_on_request(sent, lightbus, lightbus_url, housekeeping):
    lightbus(URL="redis://127.0.0.1:1/0")
    event = on_commit("shop.order_placed", number=1)
    assert sent == []
    lightbus(URL=lightbus_url)
    make_due()
    housekeeping().relay()
    OutboxEvent.objects.publish_again()
    housekeeping().relay()
    assert [(sender, arguments["event_id"], arguments["is_repeated"]) for _, sender, arguments in sent] == [
        (OutboxEvent, event.id, False),
        (OutboxEvent, event.id, True),
    ]


# --- Handled and failed -------------------------------------------------------------------------


def test_an_event_is_handled(sent, record, consume, r):
    event = fire("shop.order_placed", number=1)
    sent.clear()
    seen = []

    def look(**arguments):
        seen.append((connection.in_atomic_block, Effect.objects.count()))

    signals.event_handled.connect(look)
    try:
        drain(consume())
    finally:
        signals.event_handled.disconnect(look)
    ((name, sender, arguments),) = sent
    assert (name, sender) == ("event_handled", record)
    assert 0 < arguments.pop("seconds") < 10
    assert 0 <= arguments.pop("latency") < 60
    assert arguments == {**OF_LISTENER, "event_name": "shop.order_placed", "event_id": event.id, "attempt": 1}
    assert seen == [(False, 1)]
    assert r.xpending(KEY, GROUP)["pending"] == 0


def test_a_failure_has_its_exception_and_a_retry_is_handled(sent, record, consume):
    event = fire("shop.order_placed", number=1, fail=True)
    sent.clear()
    consumer = consume()
    drain(consumer)
    ((name, sender, arguments),) = sent
    failed = FailedEvent.objects.get()
    assert (name, sender) == ("event_failed", record)
    error = arguments.pop("exception")
    assert isinstance(error, ValueError)
    assert error.__traceback__
    assert arguments.pop("seconds") >= 0
    assert arguments.pop("next_attempt_at") == failed.next_attempt_at > timezone.now()
    assert arguments == {**OF_LISTENER, "event_name": "shop.order_placed", "event_id": event.id, "attempt": 1}

    sent.clear()
    FailedEvent.objects.update(fields=failed.fields.replace(":fail", ":gone"))
    assert consumer.inbox.retry(failed.next_attempt_at)
    ((name, sender, arguments),) = sent
    assert (name, sender, arguments["attempt"], arguments["event_id"]) == ("event_handled", record, 2, event.id)


def test_the_last_failure_makes_a_dead_letter(sent, record, consume, lightbus):
    lightbus(MAX_ATTEMPTS=2)
    fire("shop.order_placed", number=1, fail=True)
    sent.clear()
    consumer = consume()
    drain(consumer)
    assert consumer.inbox.retry(FailedEvent.objects.get().next_attempt_at)
    assert names(sent) == ["event_failed", "event_failed", "event_dead_lettered"]
    (_, _, failed), (_, sender, dead) = sent[-2:]
    assert failed.pop("next_attempt_at") is None
    assert dead == failed
    assert (sender, dead["attempt"]) == (record, 2)


def test_what_can_not_be_read_is_a_dead_letter(sent, record, consume, r):
    r.xadd(KEY, {"api_name": "shop", "event_name": "order_placed"})
    drain(consume())
    assert names(sent) == ["event_failed", "event_dead_lettered"]
    for _, _, arguments in sent:
        assert isinstance(arguments["exception"], UnreadableEvent)
        assert arguments["seconds"] is None


def test_each_event_of_a_batch_has_a_signal(sent, listeners, consume):
    @listens_to("shop.order_placed", batch=True, start="beginning")
    def record(events):
        if any(event.payload["number"] == 3 for event in events):
            raise ValueError

    fired = [fire("shop.order_placed", number=number) for number in range(5)]
    sent.clear()
    drain(consume())
    assert [(name, arguments["event_id"]) for name, _, arguments in sent if name != "event_failed"] == [
        ("event_handled", event.id) for event in fired if event.payload["number"] != 3
    ]
    assert [arguments["event_id"] for name, _, arguments in sent if name == "event_failed"] == [fired[3].id]


# --- Lost and late ------------------------------------------------------------------------------


def test_what_is_trimmed_unread_is_lost(sent, record, consume, r):
    consumer = consume()
    fire("shop.order_placed", number=0)
    drain(consumer)
    for number in range(1, 4):
        fire("shop.order_placed", number=number)
    sent.clear()
    r.xtrim(KEY, maxlen=1, approximate=False)
    consumer.offsets.update()
    assert sent == [("events_lost", record, {**OF_LISTENER, "stream": KEY, "count": 2, "stream_id": ""})]


def test_what_is_trimmed_before_it_was_handled_is_lost(sent, record, consume, r):
    consumer = consume()
    event = fire("shop.order_placed", number=0)
    sent.clear()
    consumer.offsets.report_lost(Entry(KEY, event.stream_id, {}, 1))
    assert sent == [("events_lost", record, {**OF_LISTENER, "stream": KEY, "count": 1, "stream_id": event.stream_id})]


def test_a_listener_with_an_old_event_is_late(sent, record, consume, housekeeping, monkeypatch):
    consumer = consume()
    fire("shop.order_placed", number=1)
    fire("shop.order_paid")
    sent.clear()
    keeper = housekeeping(consumer)
    keeper.redis.look_for_late_listeners()
    assert sent == []
    monkeypatch.setattr(redis_jobs, "LATE_AFTER", 0.001)
    time.sleep(0.01)
    keeper.redis.look_for_late_listeners()
    ((name, sender, arguments),) = sent
    assert (name, sender) == ("listener_late", record)
    assert 0.001 < arguments.pop("seconds") < 60
    assert arguments == {**OF_LISTENER, "stream": KEY, "waiting": 1, "pending": 0}

    sent.clear()
    consumer.pause.begin("somebody")
    keeper.redis.look_for_late_listeners()
    assert sent == []


# --- Receivers that raise -----------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("a secret"), SystemExit(1)])
def test_a_receiver_that_raises_harms_nothing(error, record, consume, caplog):
    def broken(**arguments):
        raise error

    fire("shop.order_placed", number=1)
    fire("shop.order_placed", number=2)
    signals.event_handled.connect(broken)
    try:
        drain(consume())
    finally:
        signals.event_handled.disconnect(broken)
    assert Effect.objects.count() == 2
    assert not FailedEvent.objects.exists()
    ours = [line for line in caplog.records if line.name == "lightbus_django" and line.levelname == "ERROR"]
    assert len(ours) == 2
    assert "signal event_handled" in ours[0].getMessage()
    assert type(error).__name__ in ours[0].getMessage()
    assert "secret" not in ours[0].getMessage()


def test_an_async_receiver_that_can_not_be_called_harms_nothing(caplog):
    async def receive(**arguments): ...

    async def fire_in_an_event_loop():
        signals.announce(signals.event_published, None, event_name="a.b", event_id=str(uuid7()), is_repeated=False)

    signals.event_published.connect(receive)
    try:
        asyncio.run(fire_in_an_event_loop())
    finally:
        signals.event_published.disconnect(receive)
    assert "signal event_published: receivers could not be called: RuntimeError" in caplog.text
