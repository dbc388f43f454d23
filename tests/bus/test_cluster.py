"""A Redis Cluster, as the client sees it: which node is asked for a key, and what if that is another one now."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from lightbus_django import BusUnavailable, fire, fire_many, listens_to
from lightbus_django.bus import heartbeats, streams
from lightbus_django.bus.client import RedisClient
from lightbus_django.bus.cluster import Cluster as Nodes
from lightbus_django.bus.connection import PipelinedConnection
from lightbus_django.bus.consumer_group import GroupConsumer
from lightbus_django.bus.heartbeats import ProcessSign
from lightbus_django.bus.slots import key_of, slot_of
from lightbus_django.bus.stream_watch import StreamWatch
from lightbus_django.bus.topology import REFRESH_INTERVAL
from lightbus_django.conf import find_problems
from lightbus_django.exceptions import BusForbidden, BusUnsupported, NodeDown, NodeUnavailable, SlotMoved
from lightbus_django.operating.status import read_status
from tests.clusters import Cluster, ask, views
from tests.conftest import eventually
from tests.servers import LOOPBACK, Server, redis_server

PASSWORD = "pa55-of-the-tests"
FIELDS = {b"any": b"thing"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(password=PASSWORD) as cluster:
        yield cluster


@pytest.fixture
def keys(cluster: Cluster) -> list[str]:
    """The keys of three streams, each on another master of the cluster, which is empty."""
    cluster.await_whole()
    masters = [node for node in cluster.nodes if any(view.is_master and view.ranges for view in views(node)[:1])]
    for master in masters:
        ask(master, "FLUSHALL")
    return [cluster.key_on(master) for master in masters[:3]]


@pytest.fixture
def client(cluster: Cluster) -> Iterator[RedisClient]:
    with closing(RedisClient(cluster.url, timeout=1)) as client:
        yield client


@pytest.fixture
def group(cluster: Cluster, keys: list[str]) -> Iterator[GroupConsumer]:
    """A consumer that has joined its group in all three streams."""
    with closing(RedisClient(cluster.url, timeout=2, retries=0)) as client:
        consumer = GroupConsumer(client, "group", "consumer")
        for key in keys:
            consumer.join(key, "0")
        yield consumer
        consumer.close()


def read(group: GroupConsumer, keys: list[str], block: float = 0, **options: Any) -> list[str]:
    """Read until nothing is left; return the streams of the entries."""
    found: list[str] = []
    options = {"acknowledge": {}, **options}
    while entries := group.read(keys, count=10, block=block, **options):
        found += [entry.stream for entry in entries]
    return sorted(found)


# --- Where a command goes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ((b"XADD", "a", b"*", b"x", b"y"), "a"),
        ((b"EVAL", b"return 1", 2, "a", "b", 1), "a"),
        ((b"EVAL", "return 1", 0), None),
        (("XREADGROUP", "GROUP", "STREAMS", "STREAMS", "COUNT", 1, "STREAMS", "a", ">"), "a"),
        (("XREAD", "COUNT", 1, "STREAMS", "a", "0"), "a"),
        (("XINFO", "STREAM", "a"), "a"),
        (("MEMORY", "USAGE", "a"), "a"),
        (("TIME",), None),
    ],
)
def test_the_key_of_a_command(command: tuple[Any, ...], key: str | None) -> None:
    assert key_of(command) == key


def test_keys_beside_a_stream_are_in_its_slot() -> None:
    assert slot_of("shop.*:stream") == slot_of("{shop.*:stream}:republished") == slot_of(b"shop.*:stream")


def test_events_of_several_nodes(client: RedisClient, keys: list[str], cluster: Cluster) -> None:
    events = [(key, {b"number": b"%d" % number}) for number in range(100) for key in keys]
    assert len(set(client.append_many(events))) >= 100
    for key in keys:
        entries = ask(cluster.master_of(key), "XRANGE", key, "-", "+")
        assert [entry[1][1] for entry in entries] == [str(number) for number in range(100)]
    assert sorted(streams.find_streams(client)) == sorted(keys)


def test_large_events_of_several_nodes(client: RedisClient, keys: list[str]) -> None:
    events = [(key, {b"text": b"x" * 400_000}) for _ in range(5) for key in keys]
    assert all(isinstance(result, str) for result in client.append_many(events))


def test_a_consumer_reads_several_nodes(client: RedisClient, group: GroupConsumer, keys: list[str]) -> None:
    client.append_many([(key, FIELDS) for key in keys])
    assert read(group, keys) == sorted(keys)
    began = time.monotonic()
    assert group.read(keys, count=10, block=0.2, acknowledge={}) == []
    assert time.monotonic() - began >= 0.2
    pending = {key: [entry.stream_id for entry in group.claim_own(key, 10)] for key in keys}
    client.append(keys[1], FIELDS)
    assert [entry.stream for entry in group.read(keys, count=10, block=10, acknowledge=pending)] == [keys[1]]
    assert [len(group.claim_own(key, 10)) for key in keys] == [0, 1, 0]


def test_a_watch_of_several_nodes(client: RedisClient, keys: list[str]) -> None:
    with closing(StreamWatch(client)) as watch:
        watch.add(keys)
        assert watch.wait(0.001) == []
        client.append(keys[1], FIELDS)
        assert watch.wait(10) == [keys[1]]
        watch.drop(keys[0])
        watch.drop(keys[1])
        client.append(keys[2], FIELDS)
        assert watch.wait(10) == [keys[2]]


def test_heartbeats(client: RedisClient, cluster: Cluster, keys: list[str]) -> None:
    """The clock that counts is that of one node."""
    for node in cluster.nodes:
        ask(node, "CONFIG", "RESETSTAT")
    for _ in range(10):
        heartbeats.beat(client, "a", ProcessSign(service_name="shop", process_name="web"))
        assert [each.process.service_name for each in heartbeats.read(client)] == ["shop"]
    asked = [node for node in cluster.nodes if "cmdstat_time:" in ask(node, "INFO", "commandstats")]
    assert asked == [cluster.master_of(heartbeats.INDEX)]
    heartbeats.end(client, "a", ProcessSign(service_name="shop", process_name="web"))
    assert heartbeats.read(client) == []


# --- Slots that move --------------------------------------------------------------------------


def test_a_slot_that_has_moved(client: RedisClient, group: GroupConsumer, cluster: Cluster, keys: list[str]) -> None:
    client.append_many([(key, FIELDS) for key in keys])
    assert len(read(group, keys)) == 3
    cluster.migrate(keys[0], cluster.other_master(keys[0]))
    assert all(isinstance(result, str) for result in client.append_many([(key, FIELDS) for key in keys * 2]))
    assert read(group, keys) == sorted(keys * 2)


def test_while_a_slot_moves(client: RedisClient, group: GroupConsumer, cluster: Cluster, keys: list[str]) -> None:
    """A key is asked for where it is just now."""
    key, other, record = keys[0], cluster.other_master(keys[0]), f"{{{keys[0]}}}:republished"
    client.execute(("HSET", record, "a", 1), record)
    cluster.begin_migration(key, other)
    for moved in (key, record):
        client.append_many([(each, FIELDS) for each in keys])
        entries = group.read(keys, count=100, block=0, acknowledge={}, young=[key])
        assert {entry.stream for entry in entries} == set(keys)
        assert all(entry.may_be_republished for entry in entries if entry.stream == key)
        cluster.move([moved], other)
        client.append(key, FIELDS)
        (entry,) = group.read([key], count=100, block=0.01, acknowledge={}, young=[key])
        assert entry.may_be_republished
        assert client.execute(("EXISTS", record), record) == 1
    cluster.end_migration(key, other)
    client.append(key, FIELDS)
    assert read(group, keys) == [key]
    ask(other, "CONFIG", "RESETSTAT")
    client.append(key, FIELDS)
    assert read(group, keys) == [key]
    assert ask(other, "XLEN", key) == 6
    assert "cmdstat_asking" not in ask(other, "INFO", "commandstats")
    assert [len(group.claim_own(each, 100)) for each in keys] == [6, 2, 2]


def test_what_waits_at_a_node_from_which_the_slot_moves(
    client: RedisClient, group: GroupConsumer, cluster: Cluster, keys: list[str]
) -> None:
    connection = PipelinedConnection(group.client)
    command = "XREADGROUP", "GROUP", "group", "consumer", "BLOCK", 20_000, "STREAMS", keys[0], ">"
    connection.send([command], keys[0])
    cluster.migrate(keys[0], cluster.other_master(keys[0]))
    with pytest.raises(SlotMoved):
        connection.receive()
    connection.close()
    client.append(keys[0], FIELDS)
    assert read(group, keys) == [keys[0]]


def test_keys_of_a_command_that_are_on_two_nodes(client: RedisClient, cluster: Cluster, keys: list[str]) -> None:
    """Only the event for which that is so waits."""
    key, other = keys[0], cluster.other_master(keys[0])
    client.append(key, FIELDS)
    cluster.begin_migration(key, other)
    replies = client.send([(b"EVAL", "return 1", 2, key, f"{{{key}}}:none"), (b"EVAL", "return 1", 1, keys[1])])
    assert isinstance(client.handle_error(replies[0], key), NodeUnavailable)
    assert replies[1] == 1
    assert not client.unreachable(keys)
    cluster.move_keys(key, other, 10)
    cluster.end_migration(key, other)


def test_a_replica_takes_over(client: RedisClient, group: GroupConsumer, cluster: Cluster, keys: list[str]) -> None:
    client.append_many([(key, FIELDS) for key in keys])
    cluster.await_whole()
    cluster.fail_over(keys[0])
    client.append_many([(key, FIELDS) for key in keys])
    assert read(group, keys) == sorted(keys * 2)


def test_a_master_that_died_long_ago(client: RedisClient, cluster: Cluster, keys: list[str]) -> None:
    """Its connections are broken, which costs nobody an event."""
    client.append_many([(key, FIELDS) for key in keys])
    master = cluster.master_of(keys[0])
    master.kill()
    try:
        cluster.await_another_master(keys[0], master)
        client.append(keys[0], FIELDS)
    finally:
        master.start()


def test_a_node_is_added(client: RedisClient, group: GroupConsumer, cluster: Cluster, keys: list[str]) -> None:
    client.append_many([(key, FIELDS) for key in keys])
    added = cluster.add_master()
    cluster.migrate(keys[0], added)
    client.append_many([(key, FIELDS) for key in keys])
    assert read(group, keys) == sorted(keys * 2)
    assert cluster.master_of(keys[0]) is added
    cluster.migrate(keys[0], cluster.other_master(keys[0]))


# --- Nodes that do not answer -----------------------------------------------------------------


@pytest.fixture
def frozen(client: RedisClient, cluster: Cluster, keys: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The master of the first key, which does not answer, nor is it replaced."""
    monkeypatch.setattr("lightbus_django.bus.cluster_node.PAUSE", 2.0)
    client.append_many([(key, FIELDS) for key in keys])
    master = cluster.master_of(keys[0])
    replica = cluster.replica_of(master)
    ask(replica, "CONFIG", "SET", "cluster-replica-no-failover", "yes")
    master.freeze()
    yield master
    master.thaw()
    ask(replica, "CONFIG", "SET", "cluster-replica-no-failover", "no")
    eventually(lambda: not client.unreachable(keys))


def test_events_of_other_nodes_are_published(client: RedisClient, frozen: Server, keys: list[str]) -> None:
    results = client.append_many([(key, FIELDS) for key in keys])
    assert isinstance(results[0], NodeUnavailable)
    assert f":{frozen.port}: Timeout" in str(results[0])
    assert isinstance(results[1], str)
    assert isinstance(results[2], str)
    assert client.unreachable(keys).keys() == {keys[0]}
    assert not client.is_down
    # From now on, those whose events can wait don't try.
    results = client.append_many([(key, FIELDS) for key in keys], can_wait=True)
    assert "does not answer" in str(results[0])
    assert isinstance(results[1], str)


def test_a_node_is_down_until_it_answers(
    client: RedisClient, frozen: Server, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightbus_django.bus.cluster_node.PAUSE", 0.0)
    client.append_many([(key, FIELDS) for key in keys])
    assert [list(client.unreachable(keys)) for _ in range(3)] == [[keys[0]]] * 3


def test_other_streams_are_read(group: GroupConsumer, client: RedisClient, frozen: Server, keys: list[str]) -> None:
    settled = {key: ["1-1"] for key in keys}
    assert {entry.stream for entry in group.read(keys, count=10, block=0, acknowledge=settled)} == set(keys[1:])
    assert list(group.unanswered) == [keys[0]]
    with pytest.raises(NodeUnavailable):
        group.read(keys, count=10, block=0.1, acknowledge={})
    assert group.read(keys[1:], count=10, block=0, acknowledge={}) == []
    assert not group.unanswered


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_what_waits_there_is_unknown(
    frozen: Server, cluster: Cluster, keys: list[str], lightbus: Callable[..., None], listeners: object
) -> None:
    apis = [key.removesuffix(".*:stream") for key in keys]
    for name, events in (("there", apis[:1]), ("elsewhere", apis[1:2]), ("both", apis[:2])):
        listens_to([f"{api}.happened" for api in events], listener_name=name)(lambda event: None)
    with closing(RedisClient(cluster.url, timeout=2)) as client:
        for name in ("elsewhere", "both"):
            GroupConsumer(client, f"price-monitor-{name}", "one").join(keys[1], "$")
    lightbus(URL=cluster.url, REDIS_TIMEOUT=1)
    found = {each.name: (each.waiting, each.unknown_streams) for each in read_status().listeners}
    assert found == {"there": (None, keys[:1]), "elsewhere": (0, []), "both": (None, keys[:1])}


def test_when_all_nodes_hang_one_caller_finds_out(cluster: Cluster, keys: list[str]) -> None:
    """The others, whose events can wait, don't: the nodes are tried in the background."""
    with closing(RedisClient(cluster.url, timeout=0.5)) as client:
        client.append_many([(key, FIELDS) for key in keys])
        for node in cluster.nodes:
            node.freeze()
        try:
            assert "Timeout" in str(client.append_many([(keys[0], FIELDS)], can_wait=True)[0])
            for _ in range(3):
                assert "does not answer" in str(client.append_many([(keys[0], FIELDS)], can_wait=True)[0])
        finally:
            for node in cluster.nodes:
                node.thaw()


# --- Nodes that refuse ------------------------------------------------------------------------


def test_a_node_that_refuses_writes(
    client: RedisClient, cluster: Cluster, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left out until it accepts one: an answer to a question is not enough."""
    monkeypatch.setattr("lightbus_django.bus.cluster_node.PAUSE", 0.0)
    master = cluster.master_of(keys[0])
    ask(master, "CONFIG", "SET", "min-replicas-to-write", 5)
    try:
        with pytest.raises(NodeUnavailable, match=rf":{master.port}: NOREPLICAS"):
            client.append(keys[0], FIELDS)
        for _ in range(3):
            assert client.execute(("XLEN", keys[0]), keys[0]) == 0
            assert client.ping()
            (problem,) = client.unreachable(keys).values()
            assert isinstance(problem, NodeUnavailable)
            assert problem.answers
            assert "NOREPLICAS" in str(problem)
    finally:
        ask(master, "CONFIG", "SET", "min-replicas-to-write", 0)
    eventually(lambda: not client.unreachable(keys))


def test_a_node_that_does_not_know_the_user(cluster: Cluster, keys: list[str]) -> None:
    for node in cluster.nodes:
        if node is not cluster.master_of(keys[0]):
            ask(node, "ACL", "SETUSER", "some", "on", ">secret", "~*", "+@all")
    with closing(RedisClient(cluster.url_of("some", "secret"), timeout=1)) as client:
        results = client.append_many([(key, FIELDS) for key in keys])
        assert [isinstance(result, str) for result in results] == [False, True, True]
        (problem,) = client.unreachable(keys).values()
        assert isinstance(client.append_many([(keys[0], FIELDS)], can_wait=True)[0], NodeDown)
        assert "invalid username-password pair" in str(problem)
        assert isinstance(problem, NodeUnavailable)
        assert problem.answers


def test_a_slot_that_no_node_serves(client: RedisClient, cluster: Cluster, keys: list[str]) -> None:
    master = cluster.master_of(keys[0])
    slot = slot_of(keys[0])
    client.append_many([(key, FIELDS) for key in keys])
    other = next(key for number in range(9999) if master is cluster.master_of(key := f"other{number}.*:stream"))
    for node in cluster.nodes[:]:
        ask(node, "CLUSTER", "DELSLOTS", slot)
    try:
        with pytest.raises(NodeUnavailable, match="Hash slot not served"):
            client.append(keys[0], FIELDS)
        assert client.unreachable([*keys, other]).keys() == {keys[0]}
        assert isinstance(client.append_many([(other, FIELDS)], can_wait=True)[0], str)
    finally:
        ask(master, "CLUSTER", "ADDSLOTS", slot)
    eventually(lambda: not client.unreachable(keys))


# --- Nodes that come and go -------------------------------------------------------------------


def test_a_cluster_without_slots() -> None:
    with Server("cluster-enabled yes", binary=redis_server()) as server:
        url = server.url.replace("redis://", "redis+cluster://").removesuffix("/0")
        with closing(RedisClient(url, timeout=1)) as client:
            (reply,) = client.send([("PING",)])
            assert "no node serves any slot" in str(client.handle_error(reply))


def test_a_node_that_has_left_is_forgotten(client: RedisClient, cluster: Cluster, keys: list[str]) -> None:
    client.append(keys[0], FIELDS)
    servers = client.servers
    assert isinstance(servers, Nodes)
    left = servers.topology.node(LOOPBACK, 1)
    named = [servers.topology.node(LOOPBACK, node.port) for node in cluster.nodes[:6]]
    servers.topology.changed()
    eventually(lambda: client.append(keys[0], FIELDS) and servers.topology.node(LOOPBACK, 1) is not left)
    assert [servers.topology.node(LOOPBACK, node.port) for node in cluster.nodes[:6]] == named


def test_a_question_that_a_fork_cuts_off_is_asked_again(
    client: RedisClient, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightbus_django.bus.topology.PAUSE", 0.0)
    client.append(keys[0], FIELDS)
    servers = client.servers
    assert isinstance(servers, Nodes)
    left = servers.topology.node(LOOPBACK, 1)
    time.sleep(REFRESH_INTERVAL)
    servers.topology.changed()
    with monkeypatch.context() as forked:
        forked.setattr(threading.Thread, "start", lambda thread: None)
        client.append(keys[0], FIELDS)
    eventually(lambda: client.append(keys[0], FIELDS) and servers.topology.node(LOOPBACK, 1) is not left)


def test_a_scan_while_a_node_is_down(client: RedisClient, frozen: Server, keys: list[str]) -> None:
    with pytest.raises(NodeUnavailable, match=f":{frozen.port}"):
        list(streams.find_streams(client))
    assert not client.is_down
    assert client.unreachable(keys).keys() == {keys[0]}


# --- Errors -----------------------------------------------------------------------------------


def test_passwords_are_in_no_error(cluster: Cluster, lightbus: Callable[..., None]) -> None:
    with closing(RedisClient(cluster.url, timeout=1)) as client:
        assert str(client) == cluster.address
    lightbus(URL=cluster.url.replace(PASSWORD, "wr0ng"))
    with pytest.raises(BusUnavailable, match=r"WRONGPASS|invalid username-password") as caught:
        fire("shop.order_placed", number=1)
    assert "wr0ng" not in str(caught.value)
    lightbus(URL="redis+cluster://:wr0ng@127.0.0.1:1,127.0.0.1:2")
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:[12]") as caught:
        fire_many([("shop.order_placed", {"number": 1})])
    assert "wr0ng" not in str(caught.value)


def test_a_server_that_is_no_node_of_a_cluster(lightbus: Callable[..., None]) -> None:
    with Server(binary=redis_server()) as server:
        lightbus(URL=server.url.replace("redis://", "redis+cluster://"))
        with pytest.raises(BusUnsupported, match="is not a node of a Redis Cluster: use redis://"):
            fire("shop.order_placed", number=1)


def test_a_user_who_may_not_ask_for_the_slots(cluster: Cluster) -> None:
    for node in cluster.nodes:
        ask(node, "ACL", "SETUSER", "blind", "on", ">secret", "~*", "+xadd")
    with closing(RedisClient(cluster.url_of("blind", "secret"), timeout=1)) as client:  # noqa: SIM117
        with pytest.raises(BusForbidden, match=r"cluster\|slots"):
            client.append("shop.*:stream", FIELDS)


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://host",
        "redis+cluster://host:7000,host2:7001/",
        "rediss+cluster://me:p%40ss@host:7000,[::1]:7001/0?ssl_ca_certs=/etc/ca.pem",
    ],
)
def test_urls_that_name_clusters(url: str) -> None:
    assert not find_problems({"SERVICE_NAME": "shop", "URL": url})
    assert RedisClient(url, timeout=1).url == url
