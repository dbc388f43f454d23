"""Helpers of the tests of the inbox: deliveries, listeners that record what they handle, and connections to kill."""

import contextlib
import threading

import pytest
from django.db import DatabaseError, connection

from lightbus_django import fire, listens_to
from lightbus_django.bus.group_reads import Entry
from lightbus_django.conf import get_settings
from lightbus_django.events.codec import encode, encode_payload
from lightbus_django.events.message import new_message
from lightbus_django.listening.delivery import Delivery
from lightbus_django.listening.inbox import Inbox
from lightbus_django.listening.registry import registry
from tests.app.models import Effect
from tests.conftest import drain

KEY = "shop.*:stream"

of_postgresql = pytest.mark.skipif(connection.vendor != "postgresql", reason="only PostgreSQL has it")
of_servers = pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has no server")
with_and_without_keys = pytest.mark.parametrize("idempotent", [True, False])


# --- Without a consumer -------------------------------------------------------------------------


def deliver(number=0, *, event_id=None, deliveries=1, **payload):
    """Return a delivery of `shop.order_placed`."""
    message = new_message("shop.order_placed", {"number": number, **payload})
    fields = encode(message, encode_payload(message.payload))
    if event_id is not None:
        fields[b"id"] = event_id.encode()
    return Delivery.of(Entry("shop.*:stream", f"{number + 1}-0", fields, deliveries))


def inbox():
    """Return the inbox of the only listener."""
    (listener,) = registry
    return Inbox(listener, "group", "worker", get_settings())


def handle_all(box, deliveries, *, defer=True):
    """Handle as a consumer does: transactions are chained and commits deferred where possible."""
    while deliveries:
        deliveries = deliveries[box.handle(deliveries, defer=defer) :]
        assert box.confirm()


def effects():
    """Return the numbers that handlers wrote, sorted."""
    return sorted(Effect.objects.values_list("number", flat=True))


# --- With a consumer ----------------------------------------------------------------------------


def listen(before=lambda number: None, after=lambda number: None, idempotent=True):
    """Declare a listener that records the number and attempt of each event, and calls these around it."""

    @listens_to("shop.order_placed", idempotent=idempotent, start="beginning")
    def record(event, number: int):
        before(number)
        Effect.objects.create(name=f"attempt {event.attempt}", number=number)
        after(number)


def handled():
    """Return the number and attempt of each event that was handled, by number."""
    return list(Effect.objects.order_by("number").values_list("number", "name"))


def at_first(count):
    """Return what `handled` is if the first attempt at each event succeeds."""
    return [(number, "attempt 1") for number in range(count)]


def deliveries(r, group="price-monitor-record"):
    """Return how often each pending event was delivered."""
    return [row["times_delivered"] for row in r.xpending_range(KEY, group, "-", "+", 1000)]


def fire_orders(count):
    for number in range(count):
        fire("shop.order_placed", number=number)


# --- The database -------------------------------------------------------------------------------


def execute(*statements):
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def value(sql):
    """Return the first column of a query's first row."""
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def in_thread(work):
    """Start a thread that does some work in the database."""

    def run():
        try:
            work()
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def kill_from_within():
    """Have this thread's connection kill itself, which raises an error."""
    is_postgresql = connection.vendor == "postgresql"
    execute("SELECT pg_terminate_backend(pg_backend_pid())" if is_postgresql else "KILL CONNECTION_ID()")


def kill_this_connection():
    """Kill this thread's connection from another one, so that this thread has yet to find out."""
    if connection.vendor == "postgresql":
        command = f"SELECT pg_terminate_backend({connection.connection.info.backend_pid}, 10000)"
    else:
        command = f"KILL {connection.connection.thread_id()}"
    in_thread(lambda: execute(command)).join()


def kill_other_connections():
    """Kill all connections to this database except this thread's."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return
        cursor.execute("SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()")
        for (number,) in cursor.fetchall():
            with contextlib.suppress(DatabaseError):  # it has ended meanwhile
                cursor.execute(f"KILL {number}")


# --- Consumers side by side ---------------------------------------------------------------------


def run_side_by_side(*consumers, before=lambda: None):
    """Run consumers, each in a thread, until nothing is left."""

    def run(consumer):
        before()
        drain(consumer)

    threads = [in_thread(lambda consumer=consumer: run(consumer)) for consumer in consumers]
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def set_isolation_level(level):
    with connection.cursor() as cursor:
        cursor.execute(f"SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {level}")
