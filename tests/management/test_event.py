"""`lightbus_event`: the story of one event, or the ids that begin with a text."""

import json

import pytest
from django.core.management import CommandError, call_command

from lightbus_django import fire, on_commit
from lightbus_django.events.ids import uuid7
from lightbus_django.models import ProcessedEvent
from tests.conftest import drain
from tests.operating.conftest import GROUP
from tests.operating.conftest import record as record

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


@pytest.fixture
def event(capsys):
    def run(*arguments):
        call_command("lightbus_event", *arguments)
        return capsys.readouterr().out

    return run


@pytest.fixture
def message(record, consume):
    consumer = consume()
    message = on_commit("shop.order_placed", number=7)
    drain(consumer)
    return message


def test_a_story(message, event):
    output = event(message.id)
    first, origin, published, *_ = output.splitlines()
    assert first == f"shop.order_placed {message.id}"
    assert origin.startswith("Fired with on_commit() by price-monitor, database 'default'; published as ")
    assert published.startswith("Published at 2")
    (row,) = [line for line in output.splitlines() if line.split()[:1] == ["record"]]
    assert row.split()[1:6] == [GROUP, "handled", "Handled", "by", "worker"]
    assert '"number"' not in output
    assert '"number": 7' in event(message.id, "--payload")


def test_by_its_first_characters(message, event):
    assert event(message.id[:-2]).startswith(f"shop.order_placed {message.id}\n")


def test_several_with_these_first_characters(message, event):
    other = on_commit("shop.order_placed", number=8)
    prefix = message.id[:6]
    assert event(prefix).splitlines() == [
        f"Events whose ids begin with {prefix!r}, the latest first:",
        other.id,
        message.id,
    ]
    assert json.loads(event(prefix, "--json")) == {"ids": [other.id, message.id], "gaps": []}


def test_one_that_is_in_its_stream_only(record, event):
    message = fire("shop.order_placed", number=1)
    assert event(message.id[:13]).startswith(f"shop.order_placed {message.id}\n")


def test_what_was_not_searched_is_said(message, lightbus, capsys):
    lightbus(URL="redis://127.0.0.1:1", REDIS_TIMEOUT=1)
    call_command("lightbus_event", message.id[:13])
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1:] == [message.id]
    assert captured.err.startswith("The streams were not searched: Redis at")
    with pytest.raises(CommandError, match=r"No record mentions an event.*\nThe streams were not searched"):
        call_command("lightbus_event", "0000")


@pytest.mark.parametrize("text", ["0000", "nonsense", pytest.param(str(uuid7()), id="complete")])
def test_an_unknown_one_is_an_error(record, event, text):
    with pytest.raises(CommandError, match="No record mentions an event whose id begins with"):
        event(text)


def test_json(message, event):
    found = json.loads(event(message.id, "--json"))
    assert (found["name"], found["payload"], found["is_published"]) == ("shop.order_placed", {"number": 7}, True)
    (outcome,) = found["outcomes"]
    assert (outcome["state"], outcome["group"], outcome["process"]) == ("handled", GROUP, "worker")


def test_one_that_nobody_wants(event):
    message = on_commit("shop.order_placed", number=1)
    assert "No listener of this service wants it" in event(message.id)


def test_one_whose_payload_is_gone(r, record, consume, event):
    consumer = consume()
    message = fire("shop.order_placed", number=1)
    drain(consumer)
    r.delete("shop.*:stream")
    assert "No record has the payload any more." in event(message.id, "--payload")
    assert ProcessedEvent.objects.count() == 1


def test_what_could_not_be_asked_is_said(message, lightbus, capsys):
    lightbus(URL="redis://127.0.0.1:1", REDIS_TIMEOUT=1)
    call_command("lightbus_event", message.id)
    captured = capsys.readouterr()
    assert "Handled by worker" in captured.out
    assert captured.err.startswith("Not asked: Redis at redis://127.0.0.1:1/0 is not available")
