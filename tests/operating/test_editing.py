"""Edited payloads: what a listener gets then, what its history says, and that no update is lost."""

import json
from datetime import timedelta

import pytest
from django.utils import timezone

from lightbus_django import fire, listens_to
from lightbus_django.events.codec import dump_fields, load_fields
from lightbus_django.exceptions import InvalidPayload, UnreadableEvent
from lightbus_django.listening.failures import MAX_HISTORY
from lightbus_django.models import FailedEvent, ProcessedEvent
from lightbus_django.operating import editing
from lightbus_django.operating.editing import EventChanged, edit_and_retry, parse_payload, payload_text, with_payload
from lightbus_django.operating.failures import as_json
from lightbus_django.operating.retrying import latest_outcomes
from lightbus_django.operating.story import tell
from tests.conftest import drain

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


@pytest.fixture
def got():
    """What each listener was called with."""
    return []


@pytest.fixture
def consumer(consume, got, listeners):
    """A consumer that has failed to handle an event without a name."""

    @listens_to("shop.order_placed", start="beginning")
    def record(event, number: int, name: str = "", **kwargs):
        got.append((number, name))
        if not name:
            raise ValueError("no name")

    consumer = consume()
    fire("shop.order_placed", number=7)
    drain(consumer)
    return consumer


def fail(**fields):
    content = {b"id": b"1", b"api_name": b"shop", b"event_name": b"order_placed", b"version": b"1"}
    content |= {f":{name}".encode(): value for name, value in fields.items()}
    return FailedEvent(fields=dump_fields(content), stream_id="1-0", event_name="shop.order_placed")


def edit(event, by="ada", **payload):
    edit_and_retry(event, with_payload(event, payload).fields, "default", by)


def retry(consumer):
    consumer.retries_due.set()
    drain(consumer)


class TestText:
    def test_is_what_the_event_says(self):
        event = fail(number=b"12345678901234567890123", price=b'"1.10"', name='"Ünï"'.encode())
        assert json.loads(payload_text(event)) == {
            "number": 12345678901234567890123,
            "price": "1.10",
            "name": "Ünï",
        }
        assert "Ünï" in payload_text(event)

    def test_half_a_surrogate_pair_can_be_shown(self):
        assert json.loads(payload_text(fail(name=b'"\\ud800"')).encode()) == {"name": "\ud800"}

    @pytest.mark.parametrize("value", [b"\xff", b"{", b'"' + b"x" * editing.MAX_EDITABLE + b'"'])
    def test_not_of_what_cannot_be_read_or_is_too_long(self, value):
        with pytest.raises(UnreadableEvent):
            payload_text(fail(name=value))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"a": 1,\n "b" 2}', "line 2, column 6"),
            ("[1]", "JSON object"),
            ("null", "JSON object"),
            ("", "line 1"),
            ('{"a": 1, "a": 2}', "'a' is there twice"),
            ("[" * 100_000, "can't be read"),
            ('{"a": ' + "1" * 10_000 + "}", "can't be read"),
        ],
    )
    def test_mistakes_are_named(self, text, message):
        with pytest.raises(InvalidPayload, match=message):
            parse_payload(text)


class TestContent:
    def test_what_is_the_same_keeps_its_bytes(self):
        event = fail(number=b" 1.50", nan=b"NaN", name=b'"x"', gone=b"1")
        fields = load_fields(with_payload(event, {"nan": float("nan"), "number": 1.5, "name": "y", "new": [1]}).fields)
        assert fields == {
            **{name: value for name, value in load_fields(event.fields).items() if name[:1] != b":"},
            b":nan": b"NaN",
            b":number": b" 1.50",
            b":name": b'"y"',
            b":new": b"[1]",
        }

    def test_without_a_change_it_is_the_same(self):
        event = fail(number=b"1")
        assert with_payload(event, {"number": 1}).fields == event.fields
        assert with_payload(event, {"number": 1.0}).fields != event.fields
        assert with_payload(event, {"number": True}).fields != event.fields

    @pytest.mark.parametrize("payload", [{"": 1}, {"a\n": 1}, {"a": float("inf")}, {"a": "\ud800"}])
    def test_not_what_cannot_be_on_the_bus(self, payload):
        with pytest.raises(InvalidPayload):
            with_payload(fail(), payload)


class TestEdit:
    def test_the_listener_gets_it(self, consumer, got):
        edit(FailedEvent.objects.get(), number=7, name="x")
        assert latest_outcomes("default")[0].text == "1 retried: 0 done, 0 failed again, 1 still to come"
        retry(consumer)
        assert got == [(7, ""), (7, "x")]
        assert not FailedEvent.objects.exists()
        assert ProcessedEvent.objects.get().edited_by == "ada"

    def test_what_was_fired_is_as_it_was(self, consumer, r):
        event = FailedEvent.objects.get()
        before = r.xrange("shop.*:stream")
        edit(event, number=8, name="x")
        story = tell(event.event_id)
        assert story.payload == {"number": 7}
        assert story.outcomes[0].text.endswith("This listener gets a payload that ada edited")
        r.delete("shop.*:stream")
        assert tell(event.event_id).payload == {"number": 7}
        r.xadd("shop.*:stream", before[0][1], id=before[0][0])
        retry(consumer)
        (outcome,) = tell(event.event_id).outcomes
        assert (outcome.state, outcome.text.endswith(", with a payload that ada edited")) == ("handled", True)

    def test_history_and_export_say_who_when_before_and_after(self, consumer):
        event = FailedEvent.objects.get()
        edit(event, number=7, name="Ünï", extra="x")
        event.refresh_from_db()
        attempt, edited = event.history
        assert attempt["error"] == "ValueError: no name"
        at = edited.pop("at")
        assert abs(timezone.now() - timezone.datetime.fromisoformat(at)) < timedelta(minutes=1)
        assert edited == {"by": "ada", "before": "{}", "after": '{"name": "Ünï", "extra": "x"}'}
        exported = json.loads(as_json(event))
        assert exported["payload_as_fired"] == {"number": 7}
        assert exported["payload"] == {"number": 7, "name": "Ünï", "extra": "x"}
        assert (exported["edited_by"], exported["history"][1]["by"]) == ("ada", "ada")

    def test_after_a_failure_the_history_goes_on(self, consumer):
        edit(FailedEvent.objects.get(), number=8)
        retry(consumer)
        event = FailedEvent.objects.get()
        assert ["before" in entry for entry in event.history] == [False, True, False]
        assert event.is_edited
        assert (event.edited_by, event.message().payload) == ("ada", {"number": 8})

    def test_the_history_is_bounded_and_the_original_kept_whole(self, consumer):
        event = FailedEvent.objects.get()
        fired = event.fields
        for number in range(MAX_HISTORY + 5):
            edit(event, number=number, name="x" * 5000)
            event.refresh_from_db()
        assert len(event.history) == MAX_HISTORY
        assert len(event.history[2]["before"]) < 2100
        edit(event, number=7, name="\0" * 5000)
        event.refresh_from_db()
        assert max(map(len, event.history[-1].values())) < 2100
        assert event.original_fields == fired

    def test_back_to_what_was_fired(self, consumer, got):
        event = FailedEvent.objects.get()
        edit(event, number=8, name="x")
        event.refresh_from_db()
        edit(event, number=7)
        event.refresh_from_db()
        assert not event.is_edited
        assert event.edited_by == ProcessedEvent.objects.get().edited_by == ""
        assert len(event.history) == 3


class TestLostUpdates:
    def test_of_another_edit(self, consumer):
        mine, other = FailedEvent.objects.get(), FailedEvent.objects.get()
        edit(other, number=8, by="eva")
        with pytest.raises(EventChanged):
            edit(mine, number=9)
        event = FailedEvent.objects.get()
        assert (event.edited_by, event.message().payload) == ("eva", {"number": 8})
        assert len(latest_outcomes("default")) == 1

    def test_of_a_retry_or_a_discard(self, consumer):
        mine = FailedEvent.objects.get()
        FailedEvent.objects.all().retry_now()
        with pytest.raises(EventChanged):
            edit(mine, number=9)
        FailedEvent.objects.all().discard()
        with pytest.raises(EventChanged):
            edit(mine, number=9)
        assert not FailedEvent.objects.exists()

    @pytest.mark.parametrize("idempotent", [True, False])
    @pytest.mark.parametrize("succeeds", [True, False])
    def test_of_an_edit_while_an_attempt_was_claimed(self, idempotent, succeeds, consume, listeners, got):
        """The attempt has loaded the payload from before; the one that was edited is handled after it."""

        @listens_to("shop.order_placed", start="beginning", idempotent=idempotent)
        def record(event, number):
            got.append(number)
            if number == 7 and (len(got) == 1 or not succeeds):
                raise ValueError

        consumer = consume()
        fire("shop.order_placed", number=7)
        drain(consumer)
        retries = consumer.inbox._retries
        FailedEvent.objects.all().retry_now()
        claimed = retries._claim(timezone.now())
        with pytest.raises(EventChanged):
            edit(FailedEvent.objects.get(), number=8)
        FailedEvent.objects.update(claimed_until=timezone.now())  # it takes too long
        edit(FailedEvent.objects.get(), number=8)
        failure = retries._handle(claimed)
        retries._failure = failure
        retries._record(claimed)
        event = FailedEvent.objects.get()
        assert (event.message().payload, event.attempts) == ({"number": 8}, 0)
        assert "before" in event.history[-1]
        retry(consumer)
        assert got[-1] == 8
        assert got.count(8) == 1
        assert not FailedEvent.objects.exists()
