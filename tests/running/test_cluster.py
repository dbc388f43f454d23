"""Workers on a Redis Cluster: streams on several nodes, which fail over, die, hang and hand slots to one another."""

import io
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import transaction
from django.utils import timezone

from lightbus_django import BusUnavailable, fire, fire_many, listens_to, on_commit
from lightbus_django.bus import streams
from lightbus_django.bus.client import RedisClient, get_client
from lightbus_django.bus.group_reads import Entry
from lightbus_django.conf import get_settings
from lightbus_django.exceptions import NodeUnavailable
from lightbus_django.firing import relay as relay_module
from lightbus_django.firing.relay import Relay, republish
from lightbus_django.listening.delivery import Delivery
from lightbus_django.listening.listener import Listener
from lightbus_django.listening.registry import Registry, registry
from lightbus_django.listening.state import State
from lightbus_django.models import OutboxEvent, ProcessedEvent
from lightbus_django.operating.catalogue import read_catalogue
from lightbus_django.running.own_threads import stop_consumer
from lightbus_django.running.worker import Worker
from tests.app.models import Effect
from tests.clusters import Cluster, ask, views
from tests.conftest import ROOT, eventually
from tests.servers import Server

PASSWORD = "pa55-of-the-tests"

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(password=PASSWORD) as cluster:
        yield cluster


@pytest.fixture
def apis(cluster: Cluster, lightbus: Callable[..., None], listeners: Registry) -> list[str]:
    """The names of three APIs, the stream of each on another master. The cluster is empty."""
    cluster.await_whole()
    masters = [node for node in cluster.nodes if any(view.is_master and view.ranges for view in views(node)[:1])]
    for master in masters:
        ask(master, "FLUSHALL")
    lightbus(URL=cluster.url, REDIS_TIMEOUT=1, SERVICE_NAME="shop", RECLAIM_INTERVAL=1)
    return [cluster.key_on(master).removesuffix(".*:stream") for master in masters[:3]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightbus_django.bus.cluster_node.PAUSE", 1.0)
    monkeypatch.setattr("lightbus_django.running.jobs.MIN_RETRY_DELAY", 0.5)
    monkeypatch.setattr("lightbus_django.running.loop.MAX_DELAY", 0.5)


@pytest.fixture(autouse=True)
def logs(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.DEBUG, "lightbus_django")
    yield caplog
    for record in caplog.get_records("call"):
        text = caplog.handler.format(record)
        assert PASSWORD not in text
        assert "unexpected error" not in text


@pytest.fixture
def run(apis: list[str]) -> Iterator[Callable[..., Worker]]:
    running = []

    def start(threads: int = 8) -> Worker:
        worker = Worker(registry, service_name="shop", process_name="worker", settings=get_settings(), threads=threads)
        thread = threading.Thread(target=worker.run)
        thread.start()
        running.append((worker, thread))
        eventually(lambda: all(consumer.has_joined for consumer in worker.consumers))
        return worker

    yield start
    for worker, thread in running:
        worker.stop()
        thread.join(40)
        assert not thread.is_alive()


def listen(apis: list[str], name: str = "book") -> None:
    @listens_to([f"{api}.placed" for api in apis], listener_name=name, start="beginning")
    def book(event: object, number: int) -> None:
        Effect.objects.create(name=name, number=number)


def numbers(name: str = "book") -> list[int]:
    return sorted(Effect.objects.filter(name=name).values_list("number", flat=True))


def stream(api: str) -> str:
    return f"{api}.*:stream"


def client() -> RedisClient:
    settings = get_settings()
    return get_client(settings.url, settings.redis_timeout)


def place(apis: list[str], number: int) -> None:
    """Fire an event of each API in one transaction."""
    with transaction.atomic():
        for index, api in enumerate(apis):
            on_commit(f"{api}.placed", number=3 * number + index)


@pytest.mark.parametrize("threads", [8, 1])
def test_events_of_all_nodes_are_handled(threads: int, apis: list[str], run: Callable[..., Worker]) -> None:
    """By a listener of all APIs, and by one for each; by threads of their own, or one that they share."""
    listen(apis)
    for api in apis:
        listen([api], api)
    run(threads)
    place(apis, 0)
    fire_many([(f"{api}.placed", {"number": 3 + index}) for index, api in enumerate(apis)])
    for index, api in enumerate(apis):
        fire(f"{api}.placed", number=6 + index)
    eventually(lambda: numbers() == list(range(9)))
    for index, api in enumerate(apis):
        eventually(lambda api=api, index=index: numbers(api) == [index, 3 + index, 6 + index])
    # The relay marks the rows by the confirmations, which are beside the streams.
    eventually(lambda: not OutboxEvent.objects.exclude(due_at=None).exists())
    assert OutboxEvent.objects.exclude(stream_id="").count() == 3


def test_a_burst(apis: list[str]) -> None:
    listen(apis)
    place(apis, 0)
    OutboxEvent.objects.update(due_at="2000-01-01T00:00Z")
    call_command("lightbus_listen", "--burst", verbosity=0)
    assert numbers() == [0, 1, 2]
    assert not OutboxEvent.objects.exclude(due_at=None).exists()


def test_what_people_ask(apis: list[str], run: Callable[..., Worker], capsys: pytest.CaptureFixture[str]) -> None:
    listen(apis)
    run()
    place(apis, 0)
    eventually(lambda: numbers() == [0, 1, 2])
    eventually(lambda: not OutboxEvent.objects.exclude(due_at=None).exists())
    call_command("lightbus_verify", "--since", "1h")
    for event in OutboxEvent.objects.all():
        call_command("lightbus_event", str(event.pk))
        assert "shop-book" in capsys.readouterr().out
    call_command("lightbus_status", "--json")
    shown = capsys.readouterr().out
    assert all(stream(api) in shown for api in apis)
    assert '"worker"' in shown
    assert {f"{api}.placed" for api in apis} <= {entry.name for entry in read_catalogue()}
    assert PASSWORD not in shown


def test_streams_are_trimmed_and_groups_retired(
    apis: list[str], monkeypatch: pytest.MonkeyPatch, lightbus: Callable[..., None]
) -> None:
    lightbus(STREAM_RETENTION=0)
    listen(apis)
    worker = Worker(registry, service_name="shop", process_name="worker", settings=get_settings())
    fire_many([(f"{api}.placed", {"number": number}) for api in apis for number in range(500)])
    worker.run_burst()
    worker.client.close()
    assert len(numbers()) == 1500
    for api in apis:
        assert client().execute(("XLEN", stream(api)), stream(api)) < 500
    monkeypatch.setattr(streams, "RETIRE_AFTER", 0.0)
    out = io.StringIO()
    registry.remove(next(iter(registry)))
    listen(apis, "keep")
    call_command("lightbus_retire", "shop-book", "--move-to", "shop-keep", "--idle", "0", "--no-input", stdout=out)
    for api in apis:
        assert [group.name for group in streams.groups(client(), stream(api))] == ["shop-keep"]
    registry.remove(next(iter(registry)))
    call_command("lightbus_retire", "shop-keep", "--idle", "0", "--no-input", stdout=out)
    assert [streams.groups(client(), stream(api)) for api in apis] == [[], [], []]
    call_command("lightbus_prune", stdout=out)


def test_after_a_node_has_lost_its_data(apis: list[str], cluster: Cluster, run: Callable[..., Worker]) -> None:
    listen(apis)
    place(apis, 0)
    eventually(lambda: OutboxEvent.objects.count() == 3)
    worker = run()
    eventually(lambda: numbers() == [0, 1, 2])
    eventually(lambda: not OutboxEvent.objects.exclude(due_at=None).exists())
    ask(cluster.master_of(stream(apis[0])), "FLUSHALL")
    ProcessedEvent.objects.all().delete()  # so that it shows
    call_command("lightbus_republish", "--since", "1h", verbosity=0)
    eventually(lambda: numbers() == [0, 0, 1, 1, 2, 2])
    assert worker


def kill(cluster: Cluster, key: str) -> None:
    old = cluster.master_of(key)
    old.kill()
    cluster.await_another_master(key, old)
    old.start()


def fail_over(cluster: Cluster, key: str) -> None:
    cluster.fail_over(key)


def freeze(cluster: Cluster, key: str) -> None:
    old = cluster.master_of(key)
    old.freeze()
    cluster.await_another_master(key, old)
    old.thaw()


def migrate(cluster: Cluster, key: str) -> None:
    cluster.migrate(key, cluster.other_master(key))


@pytest.mark.parametrize(
    ("how", "threads"), [(kill, 8), (kill, 1), (fail_over, 8), (freeze, 8), (migrate, 8), (migrate, 1)]
)
def test_what_is_committed_survives(
    how: Callable[[Cluster, str], None],
    threads: int,
    apis: list[str],
    cluster: Cluster,
    run: Callable[..., Worker],
) -> None:
    """Replication is asynchronous, so a node may lose what it has acknowledged: the outbox restores it."""
    listen(apis)
    listen(apis[:1], "first")
    began_at = time.time()
    run(threads)
    placed, done = 0, threading.Event()

    def happen() -> None:
        try:
            how(cluster, stream(apis[0]))
        finally:
            done.set()

    thread = threading.Thread(target=happen)
    while placed < 100 or not done.is_set():
        if placed == 50:
            thread.start()
        place(apis, placed)
        placed += 1
        if placed > 50:
            time.sleep(0.01)
    thread.join()
    for _ in range(20):
        place(apis, placed)
        placed += 1
    eventually(lambda: not client().unreachable([stream(api) for api in apis]))
    OutboxEvent.objects.exclude(due_at=None).update(due_at=timezone.now(), claimed_until=None)
    eventually(lambda: not OutboxEvent.objects.exclude(due_at=None).exists(), 60)
    call_command("lightbus_republish", "--since", f"{time.time() - began_at + 60:.0f}s", verbosity=0)
    eventually(lambda: len(numbers()) >= 3 * placed, 60)
    assert numbers() == list(range(3 * placed))
    eventually(lambda: len(numbers("first")) >= placed, 60)
    assert numbers("first") == list(range(0, 3 * placed, 3))
    cluster.await_whole()


def test_users_have_the_rights_that_the_documentation_gives_them(
    apis: list[str], cluster: Cluster, lightbus: Callable[..., None]
) -> None:
    operations = (ROOT / "docs" / "operations.md").read_text()
    (more,) = re.findall(r"rights as\s+well: `(.*?)`", operations)
    users = [line.split() for line in re.findall(r"^ACL SETUSER .+$", operations, re.MULTILINE)]
    for node in cluster.nodes:
        for user in users:
            ask(node, *user, *more.split())
        ask(node, "CONFIG", "RESETSTAT")

    @listens_to("shop.order_placed", listener_name="book", start="beginning")
    def book(event: object, number: int) -> None:
        Effect.objects.create(name="book", number=number)

    def work(service_name: str, listeners: Iterable[Listener]) -> None:
        lightbus(URL=cluster.url_of(f"{service_name}-listen", "a-password"), SERVICE_NAME=service_name)
        worker = Worker(listeners, service_name=service_name, process_name="worker", settings=get_settings())
        worker.run_burst()
        worker.client.close()

    def relay_and_handle() -> None:
        OutboxEvent.objects.exclude(due_at=None).update(due_at=timezone.now())
        work("shop", [])
        OutboxEvent.objects.all().delete()  # a service has a database of its own
        work("bookkeeping", registry)

    def place(number: int) -> None:
        lightbus(URL=cluster.url_of("shop-web", "a-password"), SERVICE_NAME="shop")
        fire("shop.order_placed", number=number)
        on_commit("shop.order_placed", number=number + 1)

    key, other = stream("shop"), cluster.other_master(stream("shop"))
    place(0)
    relay_and_handle()
    cluster.begin_migration(key, other)
    while cluster.move_keys(key, other, 1):
        pass
    place(2)
    relay_and_handle()
    cluster.end_migration(key, other)
    place(4)
    relay_and_handle()
    assert numbers() == list(range(6))
    used = {
        name.removeprefix("cmdstat_") for node in cluster.nodes for name in ask(node, "INFO", "commandstats").split()
    }
    for right in more.split():
        assert any(name.startswith(f"{right[1:]}:") for name in used), right
    lightbus(URL=cluster.url_of("support", "a-password"))
    call_command("lightbus_status", verbosity=0)
    lightbus(URL=cluster.url_of("operator", "a-password"))
    call_command("lightbus_retire", verbosity=0)


@pytest.fixture
def frozen(cluster: Cluster, apis: list[str]) -> Iterator[Callable[[], Server]]:
    """Freeze the master of the first API; its replica does not replace it."""
    master = cluster.master_of(stream(apis[0]))
    replica = cluster.replica_of(master)

    def freeze() -> Server:
        ask(replica, "CONFIG", "SET", "cluster-replica-no-failover", "yes")
        master.freeze()
        return master

    yield freeze
    master.thaw()
    ask(replica, "CONFIG", "SET", "cluster-replica-no-failover", "no")
    cluster.await_whole()


def test_the_relay_postpones_what_is_for_a_node_that_hangs(apis: list[str], frozen: Callable[[], Server]) -> None:
    for number in range(2):
        place(apis, number)
    now = timezone.now()
    OutboxEvent.objects.update(due_at=now)
    for api in apis:
        client().execute(("DEL", f"{{{stream(api)}}}:published:shop:default:times"), stream(api))
        client().execute(("DEL", f"{{{stream(api)}}}:published:shop:default"), stream(api))
    frozen()
    relay = Relay("default", client(), get_settings())
    assert relay.step(now) == 4
    waiting = OutboxEvent.objects.exclude(due_at=None)
    assert {row.event_name for row in waiting} == {f"{apis[0]}.placed"}
    assert {row.error for row in waiting} == {""}
    assert all(row.due_at and row.due_at > now for row in waiting)
    with pytest.raises(NodeUnavailable):
        relay.step(now)
    # What is published already is not made due for it.
    OutboxEvent.objects.update(due_at=None, published_at=now)
    with pytest.raises(NodeUnavailable):
        list(republish(OutboxEvent.objects.all(), client(), get_settings()))
    assert client().execute(("XLEN", stream(apis[1])), stream(apis[1])) == 6
    assert not OutboxEvent.objects.exclude(due_at=None).exists()


def test_the_relay_passes_what_is_for_a_node_that_hangs(
    apis: list[str], frozen: Callable[[], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much it is, one step publishes what is behind it."""
    monkeypatch.setattr("lightbus_django.firing.relay.RELAY_SIZE", 2)
    place(apis[1:2], 0)
    with transaction.atomic():
        for number in range(5):
            on_commit(f"{apis[0]}.placed", number=number)
        frozen()
    OutboxEvent.objects.filter(event_name=f"{apis[0]}.placed").update(due_at="2000-01-01T00:00Z")
    OutboxEvent.objects.filter(event_name=f"{apis[1]}.placed").update(due_at=timezone.now())
    confirmations = f"{{{stream(apis[1])}}}:published:shop:default"
    client().execute(("DEL", confirmations, f"{confirmations}:times"), confirmations)
    assert Relay("default", client(), get_settings()).step(timezone.now()) == 1


def test_the_relay_waits_for_confirmations_that_it_can_not_read(
    apis: list[str], frozen: Callable[[], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that is back when they are to be published gets no event twice."""
    place(apis[:1], 0)
    master, now = frozen(), timezone.now()
    OutboxEvent.objects.update(due_at=now)
    read = relay_module.mark_confirmed

    def thaw_after(*args: Any) -> Any:
        try:
            return read(*args)
        finally:
            master.thaw()
            eventually(lambda: not client().unreachable([stream(apis[0])]))

    monkeypatch.setattr(relay_module, "mark_confirmed", thaw_after)
    with pytest.raises(NodeUnavailable):
        Relay("default", client(), get_settings()).step(now)
    assert client().execute(("XLEN", stream(apis[0])), stream(apis[0])) == 1
    assert OutboxEvent.objects.exclude(due_at=None).get().due_at > now


def test_a_stop_releases_what_is_on_other_nodes(
    apis: list[str], frozen: Callable[[], Server], logs: pytest.LogCaptureFixture
) -> None:
    listen(apis)
    worker = Worker(registry, service_name="shop", process_name="worker", settings=get_settings())
    (consumer,) = worker.consumers
    consumer.step(block=0)
    place(apis, 0)
    keys = [stream(api) for api in apis]
    consumer.intake.receive(consumer.group_consumer.read(keys, count=10, block=0, acknowledge={}))
    assert len(consumer.in_flight.leased) == 3
    frozen()
    stop_consumer(consumer)
    assert consumer.state is State.STOPPED
    assert "could not be released" in logs.text
    for key in keys[1:]:
        ((_, _, idle, _),) = client().execute(("XPENDING", key, "shop-book", "-", "+", 10), key)
        assert idle > 1000 * get_settings().acknowledgement_timeout
    worker.client.close()


def test_a_consumer_leaves_a_stream_out_and_comes_back(apis: list[str], frozen: Callable[[], Server]) -> None:
    listen(apis)
    worker = Worker(registry, service_name="shop", process_name="worker", settings=get_settings())
    (consumer,) = worker.consumers
    lost, others = stream(apis[0]), apis[1:]
    while not (consumer.has_joined and numbers() == [0, 1, 2]):
        if consumer.has_joined and not OutboxEvent.objects.exists():
            place(apis, 0)
        consumer.step(block=0)
    master = frozen()
    place(others, 1)
    consumer.step(block=0)
    assert lost in consumer.in_flight.settled  # its acknowledgement is sent again
    consumer.in_flight.add([Delivery(Entry(lost, "1-1", {}))])
    consumer.step(block=0)
    assert lost not in {delivery.entry.stream for delivery in consumer.in_flight.leased}
    assert "1-1" not in consumer.in_flight.settled[lost]
    assert consumer.group_consumer.unreachable.keys() == {lost}
    assert isinstance(consumer.problem, NodeUnavailable)
    assert lost in consumer.in_flight.settled
    master.thaw()
    # What the node delivered in a reply that never arrived.
    eventually(lambda: not client().unreachable([lost]))
    fire(f"{apis[0]}.placed", number=100)
    command = "XREADGROUP", "GROUP", "shop-book", "worker", "STREAMS", lost, ">"
    assert client().execute(command, lost)
    eventually(lambda: not worker.client.unreachable([lost]))
    eventually(lambda: consumer.step(block=0) and 100 in numbers())
    consumer.reader.flush()
    assert not consumer.in_flight.settled
    assert client().execute(("XPENDING", lost, "shop-book"), lost)[0] == 0
    assert numbers() == [0, 1, 2, 3, 4, 100]
    consumer.stop()
    worker.client.close()


@pytest.fixture
def refusing(cluster: Cluster, apis: list[str]) -> Iterator[Callable[[], Server]]:
    """Let the master of the first API refuse writes."""
    master = cluster.master_of(stream(apis[0]))

    def refuse() -> Server:
        ask(master, "CONFIG", "SET", "min-replicas-to-write", 5)
        return master

    yield refuse
    ask(master, "CONFIG", "SET", "min-replicas-to-write", 0)


def test_a_node_that_refuses_writes_needs_attention_and_the_others_flow(
    apis: list[str],
    run: Callable[..., Worker],
    refusing: Callable[[], Server],
    logs: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lightbus_django.running.health.PROBE_INTERVAL", 0.1)
    monkeypatch.setattr("lightbus_django.running.health.GRACE_PERIOD", 1.0)
    listen(apis)
    run()
    place(apis, 0)
    eventually(lambda: numbers() == [0, 1, 2])
    master = refusing()
    reason = f"{master.port}: NOREPLICAS"
    eventually(lambda: any("shop-book: needs attention" in text and reason in text for text in logs.messages))
    for number in range(3, 6):
        fire(f"{apis[1]}.placed", number=number)
        eventually(lambda number=number: number in numbers())
    assert sum("can't be read: " in text and reason in text for text in logs.messages) == 1
    ask(master, "CONFIG", "SET", "min-replicas-to-write", 0)
    fire(f"{apis[0]}.placed", number=6)
    eventually(lambda: 6 in numbers())


@pytest.mark.parametrize("threads", [8, 1])
def test_streams_of_a_node_that_hangs_wait_and_the_others_flow(
    threads: int,
    apis: list[str],
    run: Callable[..., Worker],
    frozen: Callable[[], Server],
    logs: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    listen(apis)
    for api in apis:
        listen([api], api)
    run(threads)
    place(apis, 0)
    eventually(lambda: numbers() == [0, 1, 2])
    master = frozen()
    for number in range(1, 6):
        place(apis, number)
    waiting = {record.levelname: record.message for record in logs.records if "wait for the relay" in record.message}
    assert f"{master.port}: Timeout" in waiting["WARNING"]
    assert f"{master.port} does not answer" in waiting["DEBUG"]  # not every web request waits to find out
    others = [3 * number + index for number in range(1, 6) for index in (1, 2)]
    eventually(lambda: set(others) <= set(numbers()))
    for index in (1, 2):
        eventually(lambda index=index: numbers(apis[index]) == list(range(index, 18, 3)))
    assert numbers() == sorted([0, 1, 2, *others])
    with pytest.raises(BusUnavailable, match=f":{master.port}"):
        fire(f"{apis[0]}.placed", number=100)
    fire(f"{apis[1]}.placed", number=19)
    eventually(lambda: 19 in numbers())
    eventually(lambda: f"shop-book: {stream(apis[0])} can't be read" in logs.text)
    call_command("lightbus_status")
    assert f":{master.port}" in capsys.readouterr().out
    assert "ERROR" not in {record.levelname for record in logs.records}
    master.thaw()
    OutboxEvent.objects.exclude(due_at=None).update(due_at=timezone.now(), claimed_until=None)
    eventually(lambda: set(range(18)) <= set(numbers()), 60)
    assert [number for number in numbers() if number < 100] == [*range(18), 19]
    assert logs.text.count("can't be read: ") == 1
    assert logs.text.count(f"shop-book: {stream(apis[0])} can be read again") == 1
