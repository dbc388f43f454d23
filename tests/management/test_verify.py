"""`lightbus_verify`: counts, missing ids, exit codes."""

import json

import pytest
from django.core.management import CommandError, call_command

from lightbus_django import fire, listens_to
from lightbus_django.models import ProcessedEvent
from tests.conftest import drain
from tests.listening.streams import effects
from tests.operating.conftest import record as record

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


@pytest.fixture
def verify(capsys):
    def run(*arguments, since="1h"):
        try:
            call_command("lightbus_verify", "--since", since, *arguments)
        finally:
            run.out = capsys.readouterr().out
        return run.out

    return run


@pytest.fixture
def consumer(record, consume):
    consumer = consume()
    for number in range(3):
        fire("shop.order_placed", number=number)
    drain(consumer)
    return consumer


def lose_one():
    row = ProcessedEvent.objects.earliest("pk")
    row.delete()
    return row.event_id


def test_all_is_handled(consumer, verify):
    (row,) = [line.split() for line in verify().splitlines() if "record" in line]
    assert row == ["record", "3", "3", "3", "0", "0", "0", "0", "0", "0"]


def test_what_is_missing_is_named_and_an_error(consumer, verify):
    event_id = lose_one()
    with pytest.raises(CommandError, match=r"1 events are missing\. --replay hands them to their listeners\."):
        verify()
    assert f"missing for record: {event_id}" in verify.out


def test_replay(consumer, verify):
    lose_one()
    assert "1 events handed to record; lightbus_listen handles them." in verify("--replay")
    consumer.retries_due.set()
    drain(consumer)
    assert effects().count(0) == 2
    verify()


def test_json(consumer, verify):
    (found,) = json.loads(verify("--json"))
    assert (found["listener"], found["fired"], found["handled"], found["missing_ids"]) == ("record", 3, 3, [])
    event_id = lose_one()
    with pytest.raises(CommandError):
        verify("--json")
    assert json.loads(verify.out)[0]["missing_ids"] == [event_id]


def test_some_listeners_only(consumer, verify):
    @listens_to("shop.order_placed", listener_name="other")
    def other(event): ...

    lose_one()
    assert "record" not in verify("--listener", "other")
    with pytest.raises(CommandError, match="no listener 'nobody'"):
        verify("--listener", "nobody")


def test_a_span_of_time(consumer, verify):
    lose_one()
    verify("--until", "30m")
    with pytest.raises(CommandError, match=r"--since 2099-01-01T00:00\+02:00 is in the future: 20"):
        verify(since="2099-01-01T00:00+02:00")
    with pytest.raises(CommandError, match="'soon' is not a time"):
        verify(since="soon")


def test_a_service_without_listeners(verify):
    assert verify() == "This service has no listeners.\n"


def test_without_redis_it_is_incomplete(record, lightbus, verify):
    lightbus(URL="redis://127.0.0.1:1", REDIS_TIMEOUT=1)
    with pytest.raises(CommandError, match="Incomplete, run it again: Redis at"):
        verify()


def test_exit_codes(manage, consumer):
    assert manage("lightbus_verify", "--since", "1h", "--listener", "book").wait(30) == 0
