"""A Sentinel, a cluster node, a proxy, or no Redis at all at URL: one clear error, without payloads."""

import http.server
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction

from lightbus_django import BusError, fire, listens_to, on_commit
from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import find_problems, get_settings
from lightbus_django.listening.registry import Registry, registry
from lightbus_django.models import OutboxEvent
from lightbus_django.running.worker import Worker
from tests.conftest import eventually
from tests.servers import LOOPBACK, Sentinel, Server, redis_server
from tests.workers import running_worker

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

VALUE = "4929-6789-0123-4567"
LUA = ("redis.call", "KEYS")


@contextmanager
def started(*config: str, binary: Any = None) -> Iterator[str]:
    with Server(*config, binary=binary) as server:
        yield server.url


@contextmanager
def sentinel(credentials: str = "", database: int = 0) -> Iterator[str]:
    with Sentinel() as server:
        yield f"redis://{credentials}{LOOPBACK}:{server.port}/{database}"


@contextmanager
def cluster(database: int = 0) -> Iterator[str]:
    """A cluster without the slots of our streams."""
    with started("cluster-enabled yes", "cluster-require-full-coverage no", binary=redis_server()) as url:
        yield url.replace("/0", f"/{database}")


@contextmanager
def half_a_cluster() -> Iterator[str]:
    """One of two nodes. Our streams are on the other one."""
    config = ("cluster-enabled yes", "cluster-require-full-coverage no")
    with Server(*config, binary=redis_server()) as one, Server(*config, binary=redis_server()) as other:
        with one.client() as client, other.client() as other_client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
            other_client.execute_command("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
            client.execute_command("CLUSTER", "MEET", LOOPBACK, other.port)
            eventually(lambda: "cluster_slots_assigned:16384" in client.execute_command("CLUSTER", "INFO"))
            eventually(lambda: "cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
        yield one.url


@contextmanager
def web_server() -> Iterator[str]:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None: ...

    with http.server.ThreadingHTTPServer((LOOPBACK, 0), Quiet) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"redis://{LOOPBACK}:{server.server_port}/0"
        server.shutdown()


@contextmanager
def answering(line: str) -> Iterator[str]:
    """A proxy that answers every command with this line."""
    with socket.create_server((LOOPBACK, 0)) as listener:

        def answer(client: socket.socket) -> None:
            with suppress(OSError), client, client.makefile("rb") as lines:
                while head := lines.readline():
                    for _ in range(int(head[1:])):
                        lines.read(int(lines.readline()[1:]) + 2)
                    client.sendall(f"{line}\r\n".encode())

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=answer, args=[listener.accept()[0]], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"redis://{LOOPBACK}:{listener.getsockname()[1]}/0"
        listener.shutdown(socket.SHUT_RDWR)


MOVED = r"is a node of a Redis Cluster: use redis\+cluster://"
KINDS: dict[str, tuple[Callable[[], AbstractContextManager[str]], str]] = {
    "sentinel": (sentinel, "is a Sentinel"),
    "sentinel, another database": (lambda: sentinel(database=1), "is a Sentinel"),
    "sentinel, a password": (lambda: sentinel(f":{VALUE}@"), "is a Sentinel"),
    "cluster": (cluster, MOVED),
    "cluster, another database": (lambda: cluster(1), r"for a Redis Cluster, use redis\+cluster://"),
    "half a cluster": (half_a_cluster, MOVED),
    "a slot that moves": (lambda: answering(f"-ASK 13668 {LOOPBACK}:7673"), MOVED),
    "Redis without EVAL": (
        lambda: started('rename-command EVAL ""', binary=redis_server()),
        "does not know the command EVAL",
    ),
    "Valkey without EVAL": (lambda: started('rename-command EVAL ""'), "does not know the command EVAL"),
    "proxy that quotes": (
        lambda: answering(f"-ERR unknown command `eval`, with args beginning with: `{VALUE}`, `redis.call(KEYS`, "),
        "does not know the command EVAL",
    ),
    "proxy that disables": (lambda: answering("-ERR 'EVAL' command is disabled"), "does not know the command EVAL"),
    "web server": (web_server, "does not speak the Redis protocol"),
}


@pytest.fixture
def book(listeners: Registry) -> None:
    @listens_to("shop.order_placed", listener_name="book")
    def book(event: object, card: str) -> None: ...

    @listens_to("shop.order_placed", listener_name="also")
    def also(event: object, card: str) -> None: ...


@pytest.mark.parametrize("kind", KINDS)
def test_says_what_it_is(
    kind: str, book: None, lightbus: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "lightbus_django")
    make, what = KINDS[kind]
    with make() as url:
        lightbus(URL=url)
        texts = []
        if "EVAL" not in what:
            with pytest.raises(BusError, match=what) as caught:
                fire("shop.order_placed", card=VALUE)
            texts.append(str(caught.value))
        for _ in range(3):
            with transaction.atomic():
                on_commit("shop.order_placed", card=VALUE)
        levels = [record.levelname for record in caplog.records if record.levelno >= logging.WARNING]
        assert levels == ([] if texts else ["ERROR"])
        assert not OutboxEvent.objects.exclude(error="").exists()
        for options in ([], ["--burst"]):
            with pytest.raises(CommandError, match=what) as failed:
                call_command("lightbus_listen", *options)
            texts.append(str(failed.value))
        # A worker that was running before the address changed hands.
        caplog.clear()
        OutboxEvent.objects.update(due_at="2000-01-01T00:00Z")
        with running_worker("shop"):
            names = "shop-book: ", "shop-also: ", "relay"
            eventually(lambda: all(name in caplog.text for name in names))
    assert "ERROR" in {record.levelname for record in caplog.records if re.search(what, record.message)}
    for text in (*texts, caplog.text):
        assert VALUE not in text
        assert not any(word in text for word in LUA)


def test_without_listeners_too(lightbus: Callable[..., None], listeners: Registry) -> None:
    with sentinel() as url:
        lightbus(URL=url)
        with pytest.raises(CommandError, match="is a Sentinel"):
            call_command("lightbus_listen", "--burst")


def test_one_that_does_not_answer_is_waited_for(lightbus: Callable[..., None], book: None) -> None:
    lightbus(URL="redis://127.0.0.1:1/0")
    worker = Worker(registry, service_name="shop", process_name="worker", settings=get_settings())
    worker.check_bus()


def test_it_is_asked_for_its_role_once() -> None:
    with Server('rename-command XADD ""') as server, closing(RedisClient(server.url, timeout=5)) as redis_client:
        results = redis_client.append_many([("shop.*:stream", {b"a": b"b"})] * 100)
        assert len(results) == 100
        with server.client() as client:
            assert client.info("commandstats")["cmdstat_role"]["calls"] == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+sentinel://host:26379/0", "the name of the master must follow"),
        ("redis+sentinel://host:26379", "the name of the master must follow"),
        ("redis+sentinel://host:26379,host2:x/mymaster", "URL of Redis is invalid"),
        ("rediss-sentinel://host:26379/0", "for Redis Sentinel, use redis+sentinel://"),
        ("sentinel://host:26379", "for Redis Sentinel, use redis+sentinel://"),
        ("redis-cluster://host:7000", "for Redis Cluster, use redis+cluster://"),
        ("redis+cluster://host:7000,host:7001/1", "has only database 0"),
        ("redis://host,host2:6379/0", "several hosts need redis+sentinel://"),
        ("http://host:6379", "http:// is not supported"),
        ("valkey://host:6379/0", "valkey:// is not supported"),
        ("REDIS+SENTINEL://host", "use redis+sentinel://"),
    ],
)
def test_check_names_a_scheme_that_is_not_supported(url: str, said: str) -> None:
    (problem,) = find_problems({"SERVICE_NAME": "shop", "URL": url})
    assert problem.id == "E004"
    assert said in problem.message
