"""Each event begins as a request does: what a handler leaves in its thread does not reach the next one."""

import contextvars
import decimal
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.sync import sync_to_async
from django.core.cache import caches
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created
from django.urls import get_script_prefix, get_urlconf, set_script_prefix, set_urlconf
from django.utils import timezone, translation

from lightbus_django import listens_to, on_commit
from lightbus_django.database.rollback_detector import RollbackDetector
from lightbus_django.listening.isolation import Isolation
from lightbus_django.models import FailedEvent
from tests.app.models import Effect
from tests.listening.handling import deliver, handle_all, inbox

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners"),
]

tenant = contextvars.ContextVar("tenant", default="nobody")


def refuse(execute, sql, *arguments):
    if "tests_app_effect" in str(sql):
        raise PermissionError(sql)
    return execute(sql, *arguments)


def state():
    """What a handler finds in its thread."""
    return {
        "language": translation.get_language(),
        "time zone": timezone.get_current_timezone_name(),
        "context": tenant.get(),
        "urlconf": get_urlconf(),
        "script prefix": get_script_prefix(),
        "decimal": decimal.getcontext().prec,
        "wrappers": [each.alias for each in connections.all() if refuse in each.execute_wrappers],
    }


def spoil():
    """Leave something in the thread."""
    translation.activate("de")
    timezone.activate("Asia/Tokyo")
    tenant.set("acme")
    set_urlconf("tests.urls")
    set_script_prefix("/shop/")
    decimal.getcontext().prec = 3
    for each in connections.all():
        each.execute_wrappers.append(refuse)


def listen(*, batch=False, asynchronous=False, raises=False, hook=None, **options):
    """A listener that spoils its thread with each event; return the states that it found, one for each event."""
    found = []

    def work(numbers):
        found.append(state())
        Effect.objects.bulk_create([Effect(number=number) for number in numbers])
        if hook:
            transaction.on_commit(hook)
        spoil()
        if raises:
            raise ValueError

    if batch:

        @listens_to("shop.order_placed", batch=True, **options)
        def handler(events):
            work([event.payload["number"] for event in events])

    elif asynchronous:

        @listens_to("shop.order_placed", **options)
        async def handler(event, number):
            assert await sync_to_async(state)() == state()
            await sync_to_async(work)([number])
            translation.activate("de")
            tenant.set("acme")

    else:

        @listens_to("shop.order_placed", **options)
        def handler(event, number):
            work([number])

    return found


@pytest.fixture(autouse=True)
def before():
    """The state of the thread, which is the same afterwards."""
    connection.ensure_connection()
    before = state()
    yield before
    assert state() == before


@pytest.mark.parametrize("defer", [True, False], ids=["chained", "by itself"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("idempotent", [True, False])
def test_what_a_handler_leaves_in_its_thread(before, defer, asynchronous, idempotent):
    found = listen(asynchronous=asynchronous, idempotent=idempotent)
    handle_all(inbox(), [deliver(1), deliver(2), deliver(3)], defer=defer)
    assert found == [before] * 3
    assert not FailedEvent.objects.exists()
    assert Effect.objects.count() == 3


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("idempotent", [True, False])
def test_what_a_handler_leaves_that_raises_and_is_retried(before, batch, idempotent):
    found = listen(batch=batch, idempotent=idempotent, raises=True)
    box = inbox()
    box.handle([deliver(1)])
    for _ in range(2):
        FailedEvent.objects.retry_now()
        assert box.retry(timezone.now())
    assert found == [before] * 3
    assert FailedEvent.objects.get().error.startswith("ValueError")


def test_what_a_batch_handler_leaves_in_its_thread(before):
    found = listen(batch=True)
    box = inbox()
    box.handle([deliver(1), deliver(2)])
    box.handle([deliver(3)])
    assert found == [before] * 2
    assert Effect.objects.count() == 3


@pytest.mark.parametrize("robust", [True, False])
def test_commit_hooks_find_the_state_of_their_handler_and_leave_nothing(before, robust, caplog):
    found = []

    @listens_to("shop.order_placed")
    def handler(event, number):
        tenant.set(f"of {number}")
        found.append(translation.get_language())

        def hook():
            found.append(tenant.get())
            spoil()
            raise ValueError("a hook")

        transaction.on_commit(hook, robust=robust)
        connection.execute_wrappers.clear()

    handle_all(inbox(), [deliver(1), deliver(2)])
    assert found == [before["language"], "of 1", before["language"], "of 2"]
    assert not FailedEvent.objects.exists()
    assert caplog.text.count("ValueError: a hook") == 2


def test_our_own_wrapper_stays_and_so_does_what_the_project_installed(r):
    seen = []

    def count(execute, sql, *arguments):
        seen.append(str(sql))
        return execute(sql, *arguments)

    def install(connection, **kwargs):
        if count not in connection.execute_wrappers:
            connection.execute_wrappers.append(count)

    @listens_to("shop.order_placed", idempotent=False)
    def handler(event, number):
        on_commit("shop.parcel_delivered", number=number)
        connections["other"].ensure_connection()
        connections["other"].execute_wrappers.append(refuse)
        connection.execute_wrappers.clear()

    connection_created.connect(install)
    try:
        connection.close()
        connections["other"].close()
        RollbackDetector.of(connection)
        handle_all(inbox(), [deliver(1), deliver(2)])
        witness = connection.wrap_database_errors
        assert connection.execute_wrappers == [witness._execute_wrapper, count]
        assert connections["other"].execute_wrappers[-1] is count
        assert seen
    finally:
        connection_created.disconnect(install)
        for each in connections.all():
            each.execute_wrappers.clear()


def test_a_cache_is_the_same_for_all_events_of_a_thread():
    found = []

    @listens_to("shop.order_placed", idempotent=False)
    def handler(event, number):
        found.append(caches["default"])

    # The thread of this test has used its caches already.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(inbox().handle, [deliver(1), deliver(2)]).result()
        thread.submit(connections.close_all).result()
    assert len(found) == 2
    assert found[0] is found[1]


def test_a_database_that_is_added_later_can_be_used():
    """Tests and tenants add databases to a process that has handled events."""
    seen = []
    Isolation("default", "group").run(seen.append, 1)
    connections.settings["later"] = {**connections.settings["default"]}
    try:
        Isolation("later", "group").run(seen.append, 2)
    finally:
        del connections["later"], connections.settings["later"]
    assert seen == [1, 2]
