"""Redis Sentinel: a master, two replicas and three Sentinels, which fail over while events flow."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import pytest
from django.core.management import call_command
from django.db import transaction

from lightbus_django import BusUnavailable, fire, listens_to, on_commit
from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import find_problems
from lightbus_django.models import OutboxEvent
from lightbus_django.running.worker import Worker
from tests.app.models import Effect
from tests.conftest import eventually
from tests.servers import LOOPBACK, Sentinel, Server, redis_server

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

PASSWORD = "pa55-of-the-tests"
OF_SENTINELS = "pa55-of-the-sentinels"
OPTIONS = f"?sentinel_password={OF_SENTINELS}"


class Guarded:
    """A master with its replicas, and Sentinels that guard them."""

    def __init__(self, stack: ExitStack) -> None:
        self.servers = []
        for _ in range(3):
            config = [f"masterauth {PASSWORD}", "repl-diskless-sync-delay 0", "appendonly yes"]
            if self.servers:
                config.append(f"replicaof {LOOPBACK} {self.servers[0].port}")
            server = Server(*config, binary=redis_server(), password=PASSWORD)
            self.servers.append(stack.enter_context(server))
        monitor = f"sentinel monitor mymaster {LOOPBACK} {self.servers[0].port} 2"
        times = "sentinel down-after-milliseconds mymaster 500", "sentinel failover-timeout mymaster 5000"
        auth = f"sentinel auth-pass mymaster {PASSWORD}", f"sentinel sentinel-pass {OF_SENTINELS}"
        self.sentinels = [
            stack.enter_context(Sentinel(monitor, *times, *auth, password=OF_SENTINELS)) for _ in range(3)
        ]
        hosts = ",".join(f"{LOOPBACK}:{sentinel.port}" for sentinel in self.sentinels)
        self.address = f"redis+sentinel://{hosts}/mymaster/0"
        self.url = self.address.replace("://", f"://:{PASSWORD}@") + OPTIONS
        eventually(self._is_complete)

    def _is_complete(self) -> bool:
        for sentinel in self.sentinels:
            with sentinel.client() as client:
                (master,) = client.sentinel_masters().values()
            if (master["num-slaves"], master["num-other-sentinels"], master["flags"]) != (2, 2, "master"):
                return False
        return True

    def master(self) -> Server:
        """The master as a majority of the Sentinels sees it."""
        ports = []
        for sentinel in self.sentinels:
            with sentinel.client() as client:
                ports.append(int(client.sentinel_get_master_addr_by_name("mymaster")[1]))
        return next(server for server in self.servers if server.port == max(ports, key=ports.count))

    def await_another_master(self, old: Server) -> None:
        eventually(lambda: self.master() is not old, 60)


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    with ExitStack() as stack:
        yield Guarded(stack)


@pytest.fixture(autouse=True)
def logs(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.DEBUG, "lightbus_django")
    yield caplog
    for record in caplog.get_records("call"):
        text = caplog.handler.format(record)
        assert PASSWORD not in text
        assert OF_SENTINELS not in text
        assert "unexpected error" not in text


@pytest.fixture
def run(run_worker: Callable[..., Worker]) -> Callable[[], Worker]:
    return partial(run_worker, "shop", is_joined=True)


def kill(guarded: Guarded) -> None:
    guarded.master().kill()


def fail_over(guarded: Guarded) -> None:
    with guarded.sentinels[0].client() as client:
        client.execute_command("SENTINEL", "FAILOVER", "mymaster")


def freeze(guarded: Guarded) -> None:
    guarded.master().freeze()


@pytest.mark.parametrize("how", [kill, fail_over, freeze])
def test_what_is_committed_survives_a_failover(
    how: Callable[[Guarded], None], guarded: Guarded, lightbus: Callable[..., None], run: Callable[[], Worker]
) -> None:
    """Replication is asynchronous, so Redis may lose what it has acknowledged: the outbox restores it."""

    @listens_to("shop.order_placed", listener_name="book", start="beginning")
    def book(event: object, number: int) -> None:
        Effect.objects.create(name="book", number=number)

    @listens_to("shop.item_seen", listener_name="count", idempotent=False, start="beginning")
    def count(event: object, number: int) -> None:
        seen.append(number)

    seen: list[int] = []
    lightbus(URL=guarded.url, REDIS_TIMEOUT=0.5, SERVICE_NAME="shop")
    began_at = time.time()
    run()
    fired, old = [], guarded.master()

    def place(number: int) -> None:
        with transaction.atomic():
            on_commit("shop.order_placed", number=number)
        try:
            fire("shop.item_seen", number=number)
        except BusUnavailable:
            return
        fired.append(number)

    for number in range(50):
        place(number)
    how(guarded)
    deadline = time.monotonic() + 60
    number = 50
    while guarded.master() is old or number < 100:
        assert time.monotonic() < deadline
        place(number)
        number += 1
        time.sleep(0.05)
    if how is freeze:
        old.thaw()  # it finds out that it is a replica now
    last = number + 50
    for later in range(number, last):
        place(later)
    OutboxEvent.objects.exclude(due_at=None).update(due_at="2000-01-01T00:00Z", claimed_until=None)
    eventually(lambda: not OutboxEvent.objects.exclude(due_at=None).exists(), 60)
    call_command("lightbus_republish", "--since", f"{time.time() - began_at + 60:.0f}s", verbosity=0)
    expected = list(range(last))
    eventually(lambda: sorted(Effect.objects.values_list("number", flat=True)) == expected, 60)
    # `fire` has no outbox: what the old master had acknowledged and not replicated is lost.
    eventually(lambda: last - 1 in seen)
    lost = set(fired) - set(seen)
    assert len(lost) <= len(fired) - 50


def test_a_sentinel_may_be_away(guarded: Guarded, lightbus: Callable[..., None]) -> None:
    guarded.sentinels[0].kill()
    lightbus(URL=guarded.url)
    assert fire("shop.order_placed", number=1)


def test_errors_name_the_address_without_passwords(guarded: Guarded, lightbus: Callable[..., None]) -> None:
    client = RedisClient(guarded.url, timeout=1)
    assert str(client) == guarded.address
    lightbus(URL=guarded.url.replace("mymaster", "yours"))
    with pytest.raises(BusUnavailable, match="No master found for 'yours'") as caught:
        fire("shop.order_placed", number=1)
    assert PASSWORD not in str(caught.value)
    lightbus(URL=guarded.url.replace(OF_SENTINELS, "wrong"))
    with pytest.raises(BusUnavailable, match="No master found for 'mymaster'") as caught:
        fire("shop.order_placed", number=1)
    assert "wrong" not in str(caught.value)
    assert PASSWORD not in str(caught.value)
    lightbus(URL=guarded.url.replace(PASSWORD, "wrong"))
    with pytest.raises(BusUnavailable) as caught:
        fire("shop.order_placed", number=1)
    assert "'wrong'" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://host:26379/mymaster",
        "redis+sentinel://:p%40ss@host:26379,host2:26380/mymaster/2?sentinel_username=a&sentinel_password=b",
        "rediss+sentinel://host,[::1]:26379/mymaster/0?ssl_ca_certs=/etc/ca.pem",
    ],
)
def test_urls_that_name_sentinels(url: str) -> None:
    assert not find_problems({"SERVICE_NAME": "shop", "URL": url})
    assert RedisClient(url, timeout=1).url == url
