"""Redis goes away, forgets, refuses: workers go on by themselves, and nothing that was committed is lost or doubled."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest
from django.db import transaction

from lightbus_django import BusUnavailable, fire, listens_to, on_commit
from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import get_settings
from lightbus_django.events.codec import encode, encode_payload
from lightbus_django.events.message import new_message
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, OutboxEvent
from lightbus_django.running.worker import Worker
from tests.app.models import Effect
from tests.conftest import eventually
from tests.proxies import Proxy
from tests.servers import LOOPBACK, Server

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

KEY = "shop.*:stream"
PASSWORD = "pa55-of-the-tests"
TIMEOUT = 0.5


@pytest.fixture(autouse=True)
def logs(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """All that is logged, which never is a password or an error of our own."""
    caplog.set_level(logging.DEBUG, "lightbus_django")
    yield caplog
    for record in (*caplog.get_records("call"), *caplog.records):
        text = caplog.handler.format(record)
        assert PASSWORD not in text
        assert "unexpected error" not in text


@pytest.fixture
def server(lightbus: Callable[..., None]) -> Iterator[Server]:
    with Server("appendonly yes", password=PASSWORD) as server:
        lightbus(URL=server.url, REDIS_TIMEOUT=TIMEOUT)
        yield server


@pytest.fixture
def book(listeners: object) -> None:
    """A listener that gets what is fired from now on."""

    @listens_to("shop.order_placed", listener_name="book")
    def book(event: object, number: int) -> None:
        Effect.objects.create(number=number)


@pytest.fixture
def run(book: None, run_worker: Callable[..., Worker]) -> Iterator[Callable[..., None]]:
    """Run a worker, as a member of its groups unless told otherwise."""
    running = []

    def start(joined: bool = True) -> None:
        running.append(run_worker("shop", is_joined=joined))

    yield start
    for worker in running:
        worker.stop()
    with suppress(BusUnavailable):
        fire("shop.test_ended")  # so that no read waits for an event


def handled() -> list[int]:
    """The numbers of the events whose effects are there, each as often as it happened."""
    return sorted(Effect.objects.values_list("number", flat=True))


def relay_at_once() -> None:
    """Spare us the grace that a relay gives the process that committed."""
    OutboxEvent.objects.exclude(due_at=None).update(due_at="2000-01-01T00:00Z", claimed_until=None)


def nothing_is_left(server: Server) -> bool:
    with server.client() as client:
        (group,) = client.xinfo_groups(KEY)
    return group["pending"] == group["lag"] == 0 and not OutboxEvent.objects.exclude(due_at=None).exists()


def says(logs: pytest.LogCaptureFixture, text: str) -> None:
    eventually(lambda: text in logs.text)


# --- Redis can't serve for a while ------------------------------------------------------------


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    server.freeze()
    yield
    server.thaw()


@contextmanager
def refusing_connections(server: Server) -> Iterator[None]:
    server.kill()
    yield
    server.start()


@contextmanager
def read_only(server: Server) -> Iterator[None]:
    with server.client() as client:
        client.replicaof(LOOPBACK, 1)
        yield
        client.replicaof("NO", "ONE")


@contextmanager
def loading(server: Server) -> Iterator[None]:
    with server.client() as client:
        client.config_set("rdbcompression", "no")
        client.mset({f"filler-{number}": "x" * 1000 for number in range(3000)})
        client.save()
        server.kill()
        # It would load for 30 seconds, were it not told otherwise.
        server.config = ["key-load-delay 10000", "loading-process-events-interval-bytes 1024"]
        server.start()
        yield
        client.config_set("key-load-delay", 0)
        eventually(lambda: not client.info("persistence")["loading"])


@contextmanager
def out_of_memory(server: Server) -> Iterator[None]:
    with server.client() as client:
        client.config_set("maxmemory", 1)
        yield
        client.config_set("maxmemory", 0)


@contextmanager
def too_few_replicas(server: Server) -> Iterator[None]:
    with server.client() as client:
        client.config_set("min-replicas-to-write", 1)
        yield
        client.config_set("min-replicas-to-write", 0)


@contextmanager
def another_password(server: Server) -> Iterator[None]:
    with server.client() as client:
        client.config_set("requirepass", "another")
        client.client_kill_filter(_type="normal", skipme=True)
        yield
        client.config_set("requirepass", PASSWORD)


TROUBLES = [
    frozen,
    refusing_connections,
    read_only,
    loading,
    out_of_memory,
    too_few_replicas,
    another_password,
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
def test_what_is_committed_meanwhile_is_published_and_handled_once(
    trouble: Callable[[Server], Any], server: Server, run: Callable[[], None], logs: pytest.LogCaptureFixture
) -> None:
    run()
    fire("shop.order_placed", number=1)
    eventually(lambda: handled() == [1])
    with trouble(server):
        if trouble is not out_of_memory:  # which refuses no reading
            says(logs, "shop-book: interrupted, retrying: Redis at")

        started = time.monotonic()
        with pytest.raises(BusUnavailable) as caught:
            fire("shop.order_placed", number=2)
        assert time.monotonic() - started < 3
        assert PASSWORD not in str(caught.value)

        with transaction.atomic():
            on_commit("shop.order_placed", number=3)
        assert OutboxEvent.objects.get().due_at

    fire("shop.order_placed", number=4)
    relay_at_once()
    eventually(lambda: {1, 3, 4} <= set(handled()))
    eventually(lambda: nothing_is_left(server))
    # When it raises BusUnavailable, the event may or may not be on the bus.
    assert handled() in ([1, 3, 4], [1, 2, 3, 4])
    assert not FailedEvent.objects.exists()


@pytest.mark.parametrize("trouble", [refusing_connections, another_password], ids=lambda trouble: trouble.__name__)
def test_a_worker_may_start_before_its_redis(
    trouble: Callable[[Server], Any], server: Server, run: Callable[..., None], logs: pytest.LogCaptureFixture
) -> None:
    with trouble(server):
        run(joined=False)
        says(logs, "shop-book: interrupted, retrying: Redis at")
        on_commit("shop.order_placed", number=1)
    says(logs, "shop-book: resumed")
    relay_at_once()
    eventually(lambda: handled() == [1])


def test_read_only_is_no_reason_to_close_what_another_thread_has_in_use(server: Server) -> None:
    redis_client = RedisClient(server.url, timeout=5)
    with closing(redis_client), redis_client.servers.redis_py.client() as others, read_only(server):
        connection = others.client_id()
        with pytest.raises(BusUnavailable):
            redis_client.append(KEY, {b"": b""})
        assert others.client_id() == connection


# --- Redis forgets ----------------------------------------------------------------------------

FORGETTING = {
    "FLUSHALL": ["FLUSHALL"],
    "the stream deleted": ["DEL", KEY],
    "the group destroyed": ["XGROUP", "DESTROY", KEY, "shop-book"],
}


@pytest.mark.parametrize("command", FORGETTING.values(), ids=FORGETTING)
def test_what_is_fired_before_the_group_is_back_is_handled(
    command: list[str], server: Server, run: Callable[[], None], logs: pytest.LogCaptureFixture
) -> None:
    run()
    fire("shop.order_placed", number=1)
    eventually(lambda: handled() == [1])
    payload = {"number": 2}
    message = new_message("shop.order_placed", payload)
    with server.client() as client, client.pipeline(transaction=True) as together:
        # At once, so that the worker can't be quicker.
        together.execute_command(*command)
        together.xadd(KEY, encode(message, encode_payload(payload)))
        together.execute()
    eventually(lambda: 2 in handled())
    fire("shop.order_placed", number=3)
    eventually(lambda: 3 in handled())
    assert handled() == [1, 2, 3]
    assert "shop-book: the group is missing" in logs.text


@pytest.mark.parametrize("keeps", [True, False], ids=["append-only file", "empty"])
def test_a_restart(keeps: bool, server: Server, run: Callable[[], None], logs: pytest.LogCaptureFixture) -> None:
    if not keeps:
        with server.client() as client:
            client.config_set("appendonly", "no")
        server.config.clear()
    run()
    fire("shop.order_placed", number=1)
    eventually(lambda: handled() == [1])
    server.stop()
    server.start()
    fire("shop.order_placed", number=2)
    eventually(lambda: 2 in handled())
    fire("shop.order_placed", number=3)
    eventually(lambda: 3 in handled())
    assert handled() == [1, 2, 3]
    assert ("the group is missing" in logs.text) is not keeps


def test_a_restart_from_an_older_snapshot(server: Server, run: Callable[[], None]) -> None:
    with server.client() as client:
        client.config_set("appendonly", "no")
        server.config.clear()
        run()
        fire("shop.order_placed", number=1)
        client.save()  # perhaps before 1 is acknowledged
        fire("shop.order_placed", number=2)
        eventually(lambda: handled() == [1, 2])
    server.kill()
    server.start()
    fire("shop.order_placed", number=3)
    eventually(lambda: 3 in handled())
    eventually(lambda: nothing_is_left(server))
    assert handled() == [1, 2, 3]


def test_a_group_that_is_lost_while_no_process_runs(server: Server, book: None) -> None:
    def work() -> None:
        worker = Worker(registry, service_name="shop", process_name="worker", settings=get_settings())
        worker.run_burst()
        worker.client.close()

    work()
    fire("shop.order_placed", number=1)
    work()
    assert handled() == [1]
    with server.client() as client:
        client.flushall()
    fire("shop.order_placed", number=2)
    work()
    assert handled() == [1, 2]


# --- Failover ---------------------------------------------------------------------------------


def test_a_failover_to_a_replica(
    lightbus: Callable[..., None], run: Callable[[], None], logs: pytest.LogCaptureFixture
) -> None:
    """The old master, now a replica, keeps its connections, and answers READONLY on them."""
    with (
        Server("repl-diskless-sync-delay 0") as old,
        Server(f"replicaof {LOOPBACK} {old.port}") as new,
        Proxy(old.url) as address,
    ):
        lightbus(URL=address.url, REDIS_TIMEOUT=TIMEOUT)
        run()
        fire("shop.order_placed", number=1)
        eventually(lambda: handled() == [1])
        with old.client() as one, new.client() as other:
            one.set("last", "write")
            assert one.wait(1, 10_000) == 1
            address.target = LOOPBACK, new.port
            other.replicaof("NO", "ONE")
            one.replicaof(LOOPBACK, new.port)
        on_commit("shop.order_placed", number=2)
        assert OutboxEvent.objects.get().due_at
        assert "ReadOnlyError" in logs.text
        fire("shop.order_placed", number=3)
        says(logs, "shop-book: resumed")
        relay_at_once()
        eventually(lambda: {1, 2, 3} <= set(handled()))
        eventually(lambda: nothing_is_left(new))
        assert handled() == [1, 2, 3]
        # The worker's other threads had their connections to the old master, too.
        assert not [record for record in logs.records if record.message.startswith("relay of 'default': interrupted")]
        assert "the group is missing" not in logs.text


# --- A real process ---------------------------------------------------------------------------


def test_redis_is_killed_under_a_process_again_and_again(server: Server, manage: Callable[..., Any]) -> None:
    process = manage("lightbus_listen", "--process-name", "web", LIGHTBUS_URL=server.url)
    for some in (0, 10):
        for number in range(some, some + 9):
            on_commit("shop.order_placed", number=number)
        eventually(lambda some=some: some in handled())
        server.kill()
        on_commit("shop.order_placed", number=some + 9)
        server.start()
    relay_at_once()
    eventually(lambda: set(handled()) == set(range(20)))
    assert handled() == list(range(20))
    assert process.poll() is None
