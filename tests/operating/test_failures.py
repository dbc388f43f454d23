"""Failed events: selected, grouped by cause, checked before a retry, exported."""

import json
from datetime import timedelta

import pytest
from django.utils import timezone
from model_bakery import baker

from lightbus_django import fire, listens_to
from lightbus_django.events.codec import dump_fields, encode, encode_payload
from lightbus_django.events.message import new_message
from lightbus_django.models import FailedEvent
from lightbus_django.operating import failures
from lightbus_django.operating.failures import as_fixture, as_json, group_failures, obstacles, select
from tests.conftest import drain

from .conftest import GROUP

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


def fail(event="shop.order_placed", payload=None, **values):
    message = new_message(event, {"number": 1} if payload is None else payload)
    fields = dump_fields(encode(message, encode_payload(message.payload)))
    values = {"consumer_group": GROUP, "stream_id": "1-0", "fields": fields, "error": "ValueError: x"} | values
    return baker.make(FailedEvent, event_id=message.id, event_name=event, stream="shop.*:stream", **values)


def found(**filters):
    return list(select("default", **filters).order_by("pk"))


class TestSelect:
    def test_by_listener_or_group(self, record):
        ours, other = fail(), fail(consumer_group="other-group")
        assert found() == [ours, other]
        assert found(listener="record") == [ours]
        assert found(listener="other-group") == [other]
        assert found(listener="nobody") == []

    def test_by_exception_with_or_without_its_module(self):
        one = fail(exception="shop.errors.OutOfStock")
        two = fail(exception="ValueError")
        fail(exception="shop.errors.NotOutOfStock")
        assert found(exception="OutOfStock") == [one]
        assert found(exception="shop.errors.OutOfStock") == [one]
        assert found(exception="ValueError") == [two]

    def test_by_the_rest(self):
        old = fail(failed_at=timezone.now() - timedelta(days=2), place="a.py:1", next_attempt_at=timezone.now())
        new = fail(event="shop.parcel_delivered", failed_at=timezone.now(), place="a.py:2")
        assert found(since=timezone.now() - timedelta(days=1)) == [new]
        assert found(event_name="shop.parcel_delivered") == [new]
        assert found(place="a.py:1") == [old]
        assert (found(dead=True), found(dead=False)) == ([new], [old])
        assert found(place="a.py:1", dead=True) == []


def test_groups_by_cause_the_largest_first():
    first, last = timezone.now() - timedelta(hours=5), timezone.now()
    fail(exception="ValueError", place="a.py:1", first_failed_at=first, failed_at=last, next_attempt_at=last)
    sample = fail(exception="ValueError", place="a.py:1", first_failed_at=None, failed_at=last, error="the\nlast one")
    fail(exception="ValueError", place="b.py:1")
    fail(exception="KeyError", place="a.py:1")
    largest, *others = group_failures(select("default"))
    assert (largest.exception, largest.place, largest.count, largest.dead_letters) == ("ValueError", "a.py:1", 2, 1)
    assert (largest.first_at, largest.last_at) == (first, last)
    assert (largest.sample_id, largest.sample_error) == (sample.pk, "the")
    assert [group.count for group in others] == [1, 1]
    assert group_failures(select("default", exception="TypeError")) == []


def test_a_real_failure_has_a_group(record, consume):
    consumer = consume()
    for text in ("one", "two"):
        fire("shop.order_placed", number=1, broken=text)
    drain(consumer)
    (group,) = group_failures(select("default"))
    assert (group.exception, group.count, group.consumer_group) == ("ValueError", 2, GROUP)
    assert "operating/conftest.py" in group.place


class TestPreview:
    def test_nothing_is_in_the_way(self, record):
        assert list(obstacles(fail(), "default")) == []
        assert list(failures.warnings(fail(), "default")) == []

    def test_no_listener(self):
        assert list(obstacles(fail(), "default")) == [f"this service has no listener for the consumer group {GROUP}"]

    def test_a_listener_in_another_database(self, record):
        assert len(list(obstacles(fail(), "other"))) == 1

    def test_an_event_that_it_does_not_want_any_more(self, record):
        event = fail(event="shop.parcel_delivered")
        assert list(obstacles(event, "default")) == [
            "the listener record does not listen to shop.parcel_delivered any more"
        ]

    def test_arguments_that_do_not_fit(self, record):
        (text,) = obstacles(fail(payload={"number": "no number"}), "default")
        assert "number" in text

    def test_content_that_cannot_be_read(self, record):
        (text,) = obstacles(fail(fields=dump_fields({b"id": b"1"})), "default")
        assert text.startswith("the event can't be read: ")

    def test_effects_of_earlier_attempts(self, listeners):
        @listens_to("shop.order_placed", idempotent=False)
        def record(event, number): ...

        texts = list(failures.warnings(fail(error="TransactionEnded: it committed"), "default"))
        assert len(texts) == 2
        assert "not idempotent" in texts[0]


class TestExport:
    def test_as_json(self):
        event = fail(payload={"number": 1, "name": "Ünï"}, exception="ValueError", history=[{"at": "x"}], attempts=3)
        exported = json.loads(as_json(event))
        assert exported["payload"] == {"number": 1, "name": "Ünï"}
        assert (exported["event_id"], exported["attempts"], exported["history"]) == (event.event_id, 3, [{"at": "x"}])
        assert exported["stream_id"] == "1-0"

    def test_what_cannot_be_read_as_its_fields(self):
        event = fail(fields=dump_fields({b"id": b"\xff"}))
        assert json.loads(as_json(event))["fields"] == {"id": "\\xff"}
        assert "'id'" in as_fixture(event)

    @pytest.mark.parametrize("error", ["ValueError: x", 'E: """ \\" \n two lines', 'E: it ends with "'])
    def test_a_fixture_is_code_that_runs(self, error):
        payload = {"number": 1, "lines": ["x" * 90, "y" * 90], "text": "a\nb", "none": None}
        event = fail(payload=payload, error=error)
        namespace = {}
        exec(as_fixture(event).replace("@pytest.fixture\n", ""), namespace)
        assert namespace["order_placed_payload"]() == payload

    def test_a_fixture_of_an_event_whose_name_is_no_identifier(self):
        event = fail(event="shop.2-fast")
        compile(as_fixture(event), "fixture", "exec")
