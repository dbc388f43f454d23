import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from django.db import connections

from lightbus_django.bus.client import RedisClient, get_client
from lightbus_django.conf import get_settings
from lightbus_django.embedded import embedded_server
from lightbus_django.listening.consumer import Consumer
from lightbus_django.listening.listener import Listener
from lightbus_django.listening.registry import Registry, registry
from lightbus_django.running.housekeeping import Housekeeping
from lightbus_django.running.worker import Worker
from lightbus_django.testing import real_bus

from .own_postgresql import OwnPostgreSQL, own_postgresql
from .servers import Server, redis_server
from .waiting import eventually as eventually
from .workers import running_worker

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def lightbus_url() -> Iterator[str]:
    """The Redis that LIGHTBUS_URL names, or an embedded Valkey.

    Tests close all connections of their server. So the first worker of pytest-xdist has the named one, and each other
    worker starts one of its own.
    """
    url = os.environ.get("LIGHTBUS_URL")
    if not url:
        with embedded_server() as url:
            yield url
    elif os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0":
        yield url
    else:
        with Server(binary=redis_server()) as server:
            yield server.url


@pytest.fixture(scope="session", autouse=True)
def not_in_the_sandbox(lightbus_url: str) -> Iterator[None]:
    """Ours are tests of what runs on a real bus."""
    with real_bus(lightbus_url):
        yield


@pytest.fixture(autouse=True)
def lightbus(settings, lightbus_url: str) -> Callable[..., None]:
    """Point LIGHTBUS at the tests' Redis; call it to change some of its keys."""

    def change(**keys: object) -> None:
        get_client.cache_clear()  # which server is down is for each test to find out
        settings.LIGHTBUS = {**settings.LIGHTBUS, **keys}

    change(URL=lightbus_url)
    return change


@pytest.fixture(autouse=True)
def unhurried(monkeypatch) -> None:
    """What is measured against the clock is not to depend on the machine; tests of it set their own times."""
    monkeypatch.setattr("lightbus_django.listening.commit_gate.WINDOW", 600)
    monkeypatch.setattr("lightbus_django.listening.commit_gate.SLOW", 600)


@pytest.fixture
def r(lightbus_url: str) -> Iterator[redis.Redis]:
    """A client of the tests' Redis, which is empty."""
    with redis.Redis.from_url(lightbus_url, decode_responses=True) as client:
        client.flushdb()
        yield client
        client.flushdb()


@pytest.fixture
def listeners() -> Iterator[Registry]:
    """The registry, without any listeners; those that a test declares go with it."""
    before = list(registry)
    for listener in before:
        registry.remove(listener)
    yield registry
    for listener in list(registry):
        registry.remove(listener)
    for listener in before:
        registry.add(listener)


@pytest.fixture
def redis_client(lightbus_url: str, r: redis.Redis) -> Iterator[RedisClient]:
    redis_client = RedisClient(lightbus_url, timeout=60, retries=0)
    yield redis_client
    redis_client.close()


@pytest.fixture
def consume(redis_client: RedisClient) -> Callable[..., Consumer]:
    """Make the consumer of a listener (by default the only one), a member of its group from now on."""

    def make(
        listener: Listener | None = None,
        *,
        process_name: str = "worker",
        service_name: str = "price-monitor",
        leave: bool = False,
        join: bool = True,
    ) -> Consumer:
        if listener is None:
            (listener,) = registry
        consumer = Consumer(
            listener,
            service_name=service_name,
            process_name=process_name,
            settings=get_settings(),
            client=redis_client,
            leave=leave,
        )
        if join:
            consumer.step(block=0)
        return consumer

    return make


@pytest.fixture
def housekeeping(redis_client: RedisClient) -> Callable[..., Housekeeping]:
    def make(*consumers: Consumer) -> Housekeeping:
        return Housekeeping(consumers, service_name="price-monitor", settings=get_settings(), client=redis_client)

    return make


@pytest.fixture
def run_worker(listeners: Registry) -> Iterator[Callable[..., Worker]]:
    """Run a worker in a thread, with the arguments of `running_worker`; it is stopped with the test."""
    with ExitStack() as running:
        yield lambda *args, **options: running.enter_context(running_worker(*args, **options))


def drain(consumer: Consumer) -> None:
    """Step until nothing is left, and acknowledge."""
    while consumer.step(block=0):
        pass
    consumer.reader.flush()


@pytest.fixture
def manage(lightbus_url: str, r: redis.Redis, transactional_db) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `manage.py …` as a process of its own on the tests' servers."""
    processes = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env={**process_environment(lightbus_url), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def postgresql(request: pytest.FixtureRequest) -> Iterator[OwnPostgreSQL]:
    """A PostgreSQL server for the tests of a module, with our tables; POSTGRESQL in the module is its configuration."""
    with own_postgresql() as server:
        server.start(**getattr(request.module, "POSTGRESQL", {}))
        server.migrate()
        yield server


def process_environment(lightbus_url: str) -> dict[str, str]:
    """The environment of a process on the tests' servers."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "DATABASE_URL": database_url("default"),
        "OTHER_DATABASE_URL": database_url("other"),
        "LIGHTBUS_URL": lightbus_url,
    }


def database_url(alias: str) -> str:
    """The URL of the database that the tests were given."""
    connection = connections[alias]
    name = connection.settings_dict["NAME"]
    if connection.vendor == "sqlite":
        return f"sqlite:///{name}"
    return f"{os.environ['DATABASE_URL'].rpartition('/')[0]}/{name}"
