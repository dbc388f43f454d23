"""What the real sentry-sdk sends of a worker whose handlers fail."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightbus_django import fire
from lightbus_django.models import FailedEvent

pytest.importorskip("sentry_sdk")

SECRET = "4242-4242-4242-4242"

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("r")]


@pytest.fixture
def sent(manage: Callable[..., Any], tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Run a worker until nothing is left; return the events that Sentry gets."""

    def run(**options: object) -> list[dict[str, Any]]:
        file = tmp_path / "sent"
        process = manage(
            *("lightbus_listen", "--burst", "--listener", "charge"),
            DJANGO_SETTINGS_MODULE="tests.with_sentry.settings",
            LIGHTBUS_MAX_ATTEMPTS="1",
            SENTRY_FILE=str(file),
            SENTRY_OPTIONS=json.dumps(options),
        )
        output, _ = process.communicate(timeout=50)
        assert process.returncode == 0, output
        assert "it is a dead letter" in output
        items = [json.loads(line) for line in file.read_text().splitlines()]
        return [item for kind, item in items if kind == "event"]

    return run


def types(event: dict[str, Any]) -> list[str]:
    return [value["type"] for value in event["exception"]["values"]]


def test_a_failure_is_one_event_with_traceback_and_tags(sent: Any) -> None:
    event = fire("shop.order_placed", card=SECRET)
    (reported,) = sent()
    assert types(reported) == ["KeyError", "LookupError"]
    functions = [frame["function"] for frame in reported["exception"]["values"][1]["stacktrace"]["frames"]]
    assert functions[-2:] == ["charge", "look_up"]
    tags = {name: value for name, value in reported["tags"].items() if name.startswith("lightbus.")}
    assert tags == {
        "lightbus.listener": "charge",
        "lightbus.event": "shop.order_placed",
        "lightbus.event_id": event.id,
        "lightbus.dead_letter": "yes",
    }
    assert reported["transaction"] == "price-monitor-charge"
    assert reported["contexts"]["lightbus"] == {
        "consumer_group": "price-monitor-charge",
        "attempt": 1,
        "next_attempt_at": None,
    }
    assert FailedEvent.objects.get().event_id == event.id
    # The payload is only in the text of the error.
    assert reported["exception"]["values"][0].pop("value") == repr(SECRET)
    assert SECRET not in json.dumps(reported)
    assert '"vars"' not in json.dumps(reported)


def test_the_text_can_be_left_out(sent: Any) -> None:
    fire("shop.order_placed", card=SECRET)
    (reported,) = sent(error_text=False)
    assert types(reported) == ["KeyError", "LookupError"]
    assert SECRET not in json.dumps(reported)
    assert [value["value"] for value in reported["exception"]["values"]] == ["", ""]


def test_what_the_handler_has_reported_itself_is_not_reported_again(sent: Any) -> None:
    fire("shop.order_placed", card="reported")
    (reported,) = sent()
    assert types(reported) == ["LookupError"]


def test_an_event_that_does_not_fit_is_reported_without_a_traceback(sent: Any) -> None:
    fire("shop.order_placed", number=1)
    (reported,) = sent()
    assert types(reported) == ["UnreadableEvent"]
