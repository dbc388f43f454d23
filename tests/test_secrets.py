"""Neither logs nor errors tell passwords or payloads; what is stored of a failure tells no local variables."""

import logging
import traceback
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any

import pytest
import redis
from django.core.management import CommandError, call_command
from django.db import transaction
from django.test import override_settings
from django.views.decorators.debug import sensitive_variables

from lightbus_django import LightbusError, fire, listens_to, on_commit
from lightbus_django.checks import check_settings
from lightbus_django.models import FailedEvent, OutboxEvent
from lightbus_django.running.worker import Worker
from tests.conftest import eventually
from tests.servers import LOOPBACK, Server

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

PASSWORD = "pa55-of-the-tests"
VALUE = "4929-6789-0123-4567"


@pytest.fixture
def tells_no_secret(caplog: pytest.LogCaptureFixture) -> Callable[..., None]:
    """Search texts, and what this package has logged so far, on all levels."""
    caplog.set_level(logging.DEBUG, "lightbus_django")

    def search(*texts: str) -> None:
        records = [record for record in caplog.records if record.name.startswith("lightbus_django")]
        everything = [*texts, *map(caplog.handler.format, records)]
        assert everything, "nothing was told"
        for text in everything:
            assert PASSWORD not in text
            assert VALUE not in text

    return search


@pytest.fixture
def run(run_worker: Callable[..., Worker]) -> Callable[[], Worker]:
    return partial(run_worker, "shop")


def everything_of(error: BaseException) -> str:
    """Its text, its traceback and those of what it came from."""
    return "".join(traceback.format_exception(error))


@pytest.fixture
def fail_in_every_way(
    run: Callable[[], None], tells_no_secret: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> Callable[[], None]:
    """Do all that needs Redis, in vain."""

    def fail() -> None:
        @listens_to("shop.order_placed")
        def handler(event: object) -> None: ...

        with pytest.raises(LightbusError) as caught:
            fire("shop.order_placed", card=VALUE)
        with transaction.atomic():
            on_commit("shop.order_placed", card=VALUE)
        OutboxEvent.objects.exclude(due_at=None).update(due_at="2000-01-01T00:00Z")
        with pytest.raises(CommandError) as failed:
            call_command("lightbus_listen", "--burst")
        run()
        eventually(lambda: "shop-handler: interrupted" in caplog.text)
        line = "relay of 'default': interrupted, retrying: Redis at"
        eventually(lambda: line in caplog.text or OutboxEvent.objects.get().error)
        tells_no_secret(everything_of(caught.value), everything_of(failed.value), OutboxEvent.objects.get().error)

    return fail


@pytest.mark.parametrize(
    "url",
    [f"redis://:{PASSWORD}@{LOOPBACK}:1/0", f"rediss://me:{PASSWORD}@{LOOPBACK}:1/0", f"unix://:{PASSWORD}@/no/s"],
)
def test_a_redis_that_is_not_there(
    url: str, lightbus: Callable[..., None], fail_in_every_way: Callable[[], None]
) -> None:
    lightbus(URL=url)
    fail_in_every_way()


def test_a_wrong_password(lightbus: Callable[..., None], fail_in_every_way: Callable[[], None]) -> None:
    with Server(password="another") as server:
        lightbus(URL=server.url_of("", PASSWORD))
        fail_in_every_way()


def test_an_answer_that_is_an_error(lightbus: Callable[..., None], fail_in_every_way: Callable[[], None]) -> None:
    with Server(password=PASSWORD) as server, server.client() as client:
        client.set("shop.*:stream", "no stream")
        lightbus(URL=server.url)
        fail_in_every_way()


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{PASSWORD}/@host:6379/0",
        f"redis://:{PASSWORD}#@host:6379/0",
        f"redis://:{PASSWORD}@host:port/0",
        f"redis://:{PASSWORD}@[host:6379/0",
        f"redis://:{PASSWORD}@host:6379/0?socket_timeout=soon",
        f"redis://:{PASSWORD}@host:6379/0?nonsense=1",
        f"redis://:{PASSWORD}@host:6379/nonsense",
        f"http://:{PASSWORD}@host:6379/0",
        f"{PASSWORD}@host",
    ],
)
def test_a_url_that_is_none(url: str, settings: Any, tells_no_secret: Callable[..., None]) -> None:
    bad = {**settings.LIGHTBUS, "URL": url}
    with override_settings(LIGHTBUS=bad):
        checked = [f"{message.msg} {message.hint}" for message in check_settings(None)]
        with pytest.raises(LightbusError) as caught:
            fire("shop.order_placed", card=VALUE)
        with pytest.raises(CommandError) as failed:
            call_command("lightbus_listen", "--burst")
    tells_no_secret(everything_of(caught.value), everything_of(failed.value), *checked)


# --- Failures of handlers -----------------------------------------------------------------------


class Tier(Enum):
    GOLD = "gold"


def needs_a_number(event: object, number: int) -> None: ...


def needs_more(event: object, number: str, more: str) -> None: ...


def needs_a_known_value(event: object, number: Tier) -> None: ...


def raises(event: object, number: str) -> None:
    raise ValueError("no such card")


def is_refused_by_the_database(event: object, number: str) -> None:
    for _ in range(2):
        OutboxEvent.objects.create(id="01890000-0000-7000-8000-000000000000", event_name=number, payload=number)


def has_a_hook_that_raises(event: object, number: str) -> None:
    def hook() -> None:
        raise ValueError("no such card")

    transaction.on_commit(hook)


@pytest.mark.parametrize(
    "handler",
    [
        needs_a_number,
        needs_more,
        needs_a_known_value,
        raises,
        is_refused_by_the_database,
        has_a_hook_that_raises,
    ],
    ids=lambda handler: handler.__name__,
)
@pytest.mark.parametrize("idempotent", [True, False])
def test_a_handler_that_fails(
    handler: Callable[..., None],
    idempotent: bool,
    r: object,
    listeners: object,
    consume: Callable[..., Any],
    tells_no_secret: Callable[..., None],
) -> None:
    listens_to("shop.order_placed", idempotent=idempotent)(handler)
    consumer = consume()
    fire("shop.order_placed", number=VALUE)
    consumer.step(block=0)
    for failed in FailedEvent.objects.all():
        failed.retry_now()
        consumer.retries_due.set()
        consumer.step(block=0)
    tells_no_secret()


def test_what_can_not_be_read(
    r: redis.Redis, listeners: object, consume: Callable[..., Any], tells_no_secret: Callable[..., None]
) -> None:
    listens_to("shop.order_placed")(raises)
    consumer = consume()
    r.xadd("shop.*:stream", {"api_name": "shop", "event_name": "order_placed", ":number": VALUE})
    fire("shop.order_placed", number=VALUE)
    ((_, fields),) = r.xrevrange("shop.*:stream", count=1)
    r.xadd("shop.*:stream", {**fields, ":number": f'"{VALUE}'})  # no JSON
    while consumer.step(block=0):
        pass
    assert FailedEvent.objects.count() == 3
    tells_no_secret()


def charge(event: object, number: str) -> None:
    key = "".join(["sk_", "live"])
    raise ValueError("the provider refused" if key else "")


@pytest.mark.parametrize(
    "handler",
    [charge, sensitive_variables("key", "number")(charge), sensitive_variables()(charge)],
    ids=["plain", "two sensitive variables", "all variables sensitive"],
)
def test_local_variables_are_not_stored(
    handler: Callable[..., None], r: object, listeners: object, consume: Callable[..., Any]
) -> None:
    listens_to("shop.order_placed", listener_name="charge")(handler)
    consumer = consume()
    fire("shop.order_placed", number=VALUE)
    consumer.step(block=0)
    failed = FailedEvent.objects.get()
    assert failed.error == "ValueError: the provider refused"
    assert "in charge" in failed.traceback
    for text in (failed.error, failed.traceback):
        assert VALUE not in text
        assert "sk_live" not in text
