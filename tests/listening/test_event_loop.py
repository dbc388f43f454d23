"""Async handlers: their clients live on from event to event, their queries stay in the event's transaction."""

import asyncio
import contextvars
import threading

import pytest
import redis.asyncio
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection
from django.utils import timezone

from lightbus_django import fire, listens_to
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, ProcessedEvent
from tests.app.models import Effect
from tests.conftest import eventually
from tests.listening.handling import deliver, effects, handle_all, inbox
from tests.workers import running_worker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners")]


@pytest.fixture
def client(r, lightbus_url):
    """A client as a module has it: made outside of any event loop."""
    client = redis.asyncio.Redis.from_url(lightbus_url)
    yield client

    @listens_to("shop.order_placed", listener_name="closing")
    async def close(event, number):
        await client.aclose()

    (listener,) = (item for item in registry if item.handler is close)
    listener.call(deliver().message)


def in_the_transaction(number):
    """Write, and look whether the key of the event is to be seen there."""
    assert connection.in_atomic_block
    assert ProcessedEvent.objects.exists()
    Effect.objects.create(name=threading.current_thread().name, number=number)


@pytest.mark.parametrize("defer", [True, False], ids=["chained", "by itself"])
@pytest.mark.parametrize("idempotent", [True, False])
def test_a_client_works_from_event_to_event(client, r, defer, idempotent):
    @listens_to("shop.order_placed", idempotent=idempotent)
    async def handler(event, number):
        await asyncio.gather(*(client.incr("calls") for _ in range(3)))
        await Effect.objects.acreate(number=number)

    handle_all(inbox(), [deliver(1), deliver(2), deliver(3)], defer=defer)
    assert not FailedEvent.objects.exists()
    assert effects() == [1, 2, 3]
    assert r.get("calls") == "9"


def test_a_client_works_from_batch_to_batch(client, r):
    @listens_to("shop.order_placed", batch=True)
    async def handler(events):
        assert await client.incr("calls")
        await sync_to_async(in_the_transaction)(len(events))

    box = inbox()
    box.handle([deliver(1), deliver(2)])
    box.handle([deliver(3)])
    assert not FailedEvent.objects.exists()
    assert effects() == [1, 2]


def test_a_client_works_in_retries(client, r):
    @listens_to("shop.order_placed")
    async def handler(event, number):
        await sync_to_async(in_the_transaction)(number)
        if await client.incr("calls") < 4:
            raise ValueError("not yet")

    box = inbox()
    box.handle([deliver(1)])
    assert effects() == []
    for _ in range(3):
        FailedEvent.objects.retry_now()
        assert box.retry(timezone.now())
    assert effects() == [1]
    assert not FailedEvent.objects.exists()


def test_a_client_is_shared_by_the_listeners_of_a_worker(client, r):
    for name in ("one", "two", "three"):

        @listens_to("shop.order_placed", listener_name=name, start="beginning", batch=name == "three")
        async def handler(event, number=None, name=name):
            for _ in range(3):
                await client.incr(name)
            await sync_to_async(in_the_transaction)(0)

    for number in range(20):
        fire("shop.order_placed", number=number)
    with running_worker("shop"):
        eventually(lambda: ProcessedEvent.objects.count() + FailedEvent.objects.count() >= 60)
    assert not FailedEvent.objects.exists()
    assert (r.get("one"), r.get("two")) == ("60", "60")
    # Each in its own thread, which its listener's transaction is in.
    assert set(Effect.objects.values_list("name", flat=True)) == {"shop-one", "shop-two", "shop-three"}


@pytest.mark.parametrize("raises", [False, True])
def test_tasks_that_a_handler_leaves_end_before_the_commit(raises):
    ends, tasks = [], []

    async def go_on(number):
        try:
            await asyncio.sleep(3600)
        finally:
            ends.append(await sync_to_async(lambda: connection.in_atomic_block)())
            await Effect.objects.acreate(number=number)

    async def start_another(number):
        try:
            await asyncio.sleep(3600)
        finally:
            tasks.append(asyncio.create_task(go_on(number)))

    @listens_to("shop.order_placed")
    async def handler(event, number):
        tasks.extend(asyncio.create_task(work(number)) for work in (go_on, start_another))
        await asyncio.sleep(0)
        if raises:
            raise ValueError

    handle_all(inbox(), [deliver(1), deliver(2)])
    assert len(tasks) == 6
    assert all(task.cancelled() for task in tasks)
    assert ends == [True] * 4
    assert effects() == ([] if raises else [1, 1, 2, 2])


def test_a_task_with_a_context_of_its_own_lives_on():
    async def serve(questions):
        while True:
            (await questions.get()).set_result("answer")

    answers = []
    client = {}

    @listens_to("shop.order_placed")
    async def handler(event, number):
        if not client:
            client["questions"] = asyncio.Queue()
            client["task"] = asyncio.create_task(serve(client["questions"]), context=contextvars.Context())
        future = asyncio.get_running_loop().create_future()
        client["questions"].put_nowait(future)
        answers.append(await future)
        if number == 3:
            client["task"].cancel()

    handle_all(inbox(), [deliver(1), deliver(2), deliver(3)])
    assert answers == ["answer"] * 3


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_a_task_that_raises_what_ends_a_loop_harms_its_event_only(error):
    async def fail():
        raise error("in a task")

    @listens_to("shop.order_placed")
    async def handler(event, number):
        await Effect.objects.acreate(number=number)
        if number == 2:
            try:
                await asyncio.create_task(fail())
            except BaseException as caught:
                raise ValueError from caught
        if number == 3:
            asyncio.get_running_loop().stop()

    handle_all(inbox(), [deliver(1), deliver(2), deliver(3), deliver(4)])
    assert effects() == [1, 3, 4]
    assert FailedEvent.objects.count() == 1


def test_threads_that_a_handler_uses_keep_no_connection():
    opened = []

    def count():
        connection.force_debug_cursor = True
        opened.append((connection.connection, len(connection.queries_log)))
        return Effect.objects.count()

    @listens_to("shop.order_placed")
    async def handler(event, number):
        assert await asyncio.to_thread(count) == 0
        assert await sync_to_async(count, thread_sensitive=False)() == 0

    handle_all(inbox(), [deliver(1), deliver(2)])
    assert not FailedEvent.objects.exists()
    assert opened == [(None, 0)] * 4


def test_others_loops_are_left_alone():
    @listens_to("shop.order_placed")
    async def handler(event, number):
        loops.append(asyncio.get_running_loop())
        await Effect.objects.acreate(number=number)

    async def elsewhere():
        loops.append(asyncio.get_running_loop())

    loops = []
    handle_all(inbox(), [deliver(1), deliver(2)])
    async_to_sync(elsewhere)()
    assert loops[0] is loops[1] is not loops[2]
    assert not loops[0].is_closed()
    assert loops[2].is_closed()
