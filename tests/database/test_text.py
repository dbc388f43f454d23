"""Databases that lack most characters: MariaDB with utf8mb3, PostgreSQL with LATIN1. SQLite has them all."""

import json

import pytest
from django.core.management import call_command
from django.db import connection, connections, transaction

from lightbus_django import InvalidEventName, fire, listens_to, on_commit
from lightbus_django.models import FailedEvent, OutboxEvent
from tests.app.models import Effect
from tests.conftest import drain

KEY = "shop.*:stream"
HORSE = "\U0001f40e"
WORD = "\u4fa1\u683c"  # within utf8mb3, not within LATIN1
NASTY = f"{HORSE} {WORD} \x00 \x85 \ud800 für"

ALIAS = "other" if connection.vendor == "sqlite" else "narrow"

pytestmark = pytest.mark.django_db(transaction=True, databases={"default", "other", ALIAS})

CREATE = {
    "postgresql": "CREATE DATABASE {} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
    "mysql": "CREATE DATABASE {} CHARACTER SET utf8mb3",
}


def execute(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)


@pytest.fixture(scope="module", autouse=True)
def alias(django_db_setup, django_db_blocker):
    """The alias of such a database, which the tests have made; SQLite has none, and takes part with an ordinary one."""
    if ALIAS == "other":
        yield ALIAS
        return
    name = f"{connection.settings_dict['NAME']}_narrow"
    connections.settings[ALIAS] = {**connection.settings_dict, "NAME": name}
    with django_db_blocker.unblock():
        execute(f"DROP DATABASE IF EXISTS {name}")
        execute(CREATE[connection.vendor].format(name))
        try:
            call_command("migrate", database=ALIAS, verbosity=0)
            yield ALIAS
        finally:
            connections[ALIAS].close()
            del connections[ALIAS], connections.settings[ALIAS]
            execute(f"DROP DATABASE {name}")


@pytest.fixture
def failed(alias):
    return FailedEvent.objects.using(alias)


class Silent(Exception):
    def __str__(self):
        raise ValueError("it has no text")


class Odd(Exception):
    def __str__(self):
        return 5  # noqa: PLE0307


class Ending(Exception):
    def __str__(self):
        raise SystemExit


def in_a_module_of_this_name():
    exec(compile("raise ValueError", f"/srv/{HORSE}\x00{WORD}.py", "exec"), {"__name__": HORSE})


def from_itself():
    error = ValueError("again")
    try:
        raise error from error
    finally:
        del error


def after_one_another():
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    raise one


def with_notes():
    error = ValueError(NASTY)
    error.add_note(NASTY)
    raise error


def throw(error):
    raise error


WAYS = {
    "text": lambda: throw(ValueError(NASTY)),
    "a megabyte": lambda: throw(ValueError(HORSE * 1_000_000)),
    "type": lambda: throw(type(f"{WORD}", (ValueError,), {"__module__": HORSE})("x")),
    "no text": lambda: throw(Silent()),
    "a text that is none": lambda: throw(Odd()),
    "a text that ends the process": lambda: throw(Ending()),
    "cause": from_itself,
    "circle": after_one_another,
    "group": lambda: throw(ExceptionGroup(NASTY, [ValueError(NASTY), Silent()])),
    "module": in_a_module_of_this_name,
    "notes": with_notes,
    "syntax": lambda: compile(f"x = '{HORSE}\ud800", f"{HORSE}\ud800.py", "exec"),
}


@pytest.mark.parametrize("listener", ["single", "batch", "without keys", "that commits"])
def test_a_failure_is_recorded_whatever_is_in_it(listener, alias, failed, r, listeners, consume):
    def handle(way):
        Effect.objects.using(alias).create(name=way)
        if way in WAYS:
            if listener == "that commits":
                connections[alias].commit()
            WAYS[way]()

    if listener == "batch":

        @listens_to("shop.order_placed", using=alias, batch=True)
        def book_all(events):
            for event in events:
                handle(event.payload["way"])
    else:

        @listens_to("shop.order_placed", using=alias, idempotent=listener != "without keys")
        def book(event, way):
            handle(way)

    consumer = consume()
    for way in WAYS:
        fire("shop.order_placed", way=way)
        fire("shop.order_placed", way="good")
    drain(consumer)
    assert Effect.objects.using(alias).filter(name="good").count() == len(WAYS)
    assert failed.count() == len(WAYS)
    assert not failed.filter(error="").exists()
    assert not failed.filter(traceback="").exists()
    assert r.xpending(KEY, consumer.group)["pending"] == 0
    failed.retry_now()
    for _ in WAYS:
        consumer.retries_due.set()
        drain(consumer)
    assert failed.filter(attempts=1).count() == len(WAYS)


def test_what_can_be_stored_is_stored_as_it_is(alias, failed, r, listeners, consume):
    @listens_to("shop.order_placed", using=alias)
    def book(event):
        raise ValueError(NASTY)

    consumer = consume()
    fire("shop.order_placed")
    drain(consumer)
    horse = HORSE if connection.vendor == "sqlite" else r"\U0001f40e"
    word = r"\u4fa1\u683c" if connection.vendor == "postgresql" else WORD
    assert failed.get().error == rf"ValueError: {horse} {word} \x00 \x85 \ud800 für"
    assert failed.get().traceback.endswith(f"{failed.get().error}\n")


def test_a_long_text_leaves_room_for_the_frames(failed, alias, r, listeners, consume):
    @listens_to("shop.order_placed", using=alias)
    def book(event):
        raise ValueError("x" * 1_000_000 + "the end")

    consumer = consume()
    fire("shop.order_placed")
    drain(consumer)
    assert "in book" in failed.get().traceback
    assert failed.get().traceback.endswith("the end\n")


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("service_name", ["price-monitor", f"{HORSE}{WORD}", WORD * 49], ids=["plain", "odd", "long"])
def test_names_are_stored_whatever_is_in_them(service_name, batch, alias, failed, r, listeners, consume, housekeeping):
    """A letter beyond the sixteen bits of utf8mb3 is one that an event's name may have."""
    event_name = "shop.\U00020bb7" + WORD
    fails = [True]

    @listens_to(event_name, using=alias, batch=batch)
    def book(events_or_event):
        if fails:
            raise ValueError

    @listens_to(event_name, using=alias, listener_name=f"other{HORSE}")
    def other(event):
        Effect.objects.using(alias).create()

    consumers = [consume(listener, service_name=service_name) for listener in listeners]
    ours = consumers[0]
    for _ in range(3):
        fire(event_name)
    r.xadd(KEY, {"id": "1", "api_name": f"{HORSE}\ud800".encode(errors="surrogatepass")})
    for consumer in consumers:
        drain(consumer)
    assert Effect.objects.using(alias).count() == 3
    assert failed.count() == 5
    assert {consumer.inbox.has_handled([event_name]) for consumer in consumers} == {True}
    fails.clear()
    failed.retry_now()
    housekeeping(*consumers).flag_due_retries()
    assert all(consumer.retries_due.is_set() for consumer in consumers)
    for consumer in consumers:
        drain(consumer)
    assert failed.count() == 2
    for group in (consumer.group for consumer in consumers):
        assert r.xpending(KEY, group)["pending"] == 0
    # Delivered once more, they are known.
    for _, fields in r.xrange(KEY, count=3):
        r.xadd(KEY, fields)
    fails.append(True)
    drain(ours)
    assert failed.count() == 2


@pytest.mark.parametrize("using", ["a relay", "no relay"])
def test_a_payload_is_staged_whatever_is_in_it(using, alias, r, housekeeping, lightbus, lightbus_url):
    payload = {"text": f'{HORSE} {WORD} \x00 für " \\ \\u0041', WORD: {HORSE: [HORSE]}}
    if using == "a relay":
        lightbus(URL="redis://127.0.0.1:1/0")
    with transaction.atomic(using=alias):
        on_commit.using(alias)("shop.order_placed", **payload)
    if using == "a relay":
        lightbus(URL=lightbus_url)
        OutboxEvent.objects.using(alias).update(due_at="2000-01-01T00:00Z")
        housekeeping().relay()
    ((_, fields),) = r.xrange(KEY)
    assert {key[1:]: json.loads(value) for key, value in fields.items() if key[0] == ":"} == payload
    assert OutboxEvent.objects.using(alias).get().payload.isascii()


def test_an_event_name_that_has_no_room_in_the_outbox_is_refused(alias):
    if connection.vendor == "sqlite":
        pytest.skip("it takes them all")
    with transaction.atomic(using=alias):
        with pytest.raises(InvalidEventName, match="can't be stored in the database 'narrow'"):
            on_commit.using(alias)("shop.\U00020bb7")
        on_commit.using(alias)("shop.größe")
    assert OutboxEvent.objects.using(alias).get().event_name == "shop.größe"


@pytest.mark.parametrize("number", [4_194_000, 1_500_000])
def test_a_content_that_is_longer_for_the_driver_than_for_us(number, alias, failed, r, listeners, consume):
    """MySQL's writes two backslashes for each, and the server takes 16 MiB with one statement."""

    @listens_to("shop.order_placed", using=alias)
    def book(event, **payload):
        raise ValueError("x" * 1_000_000)

    consumer = consume()
    fire("shop.order_placed", text="short")
    ((_, fields),) = r.xrange(KEY)
    r.xadd(KEY, {**fields, "id": "1", ":text": "\\" * number})
    drain(consumer)
    assert failed.count() == 2
    assert r.xpending(KEY, "price-monitor-book")["pending"] == 0
    assert ("too large to keep" in failed.latest("pk").error) == (number > 4_000_000)
