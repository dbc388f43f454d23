"""docs/operations.md is true: its Redis users can do their work and no more, its log lines are those of the code."""

import ast
import configparser
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from django.core.management import CommandError, call_command, load_command_class

import lightbus_django
from lightbus_django import BusError, BusUnavailable, fire, listens_to, on_commit
from lightbus_django.bus import first_publications as republished
from lightbus_django.bus import heartbeats, streams
from lightbus_django.bus.client import RedisClient
from lightbus_django.bus.consumer_group import GroupConsumer
from lightbus_django.bus.heartbeats import ProcessSign
from lightbus_django.bus.stream_watch import StreamWatch
from lightbus_django.conf import get_settings
from lightbus_django.events.ids import uuid7
from lightbus_django.firing import publisher as dispatch
from lightbus_django.listening.in_flight import InFlight
from lightbus_django.listening.reader import StreamReader
from lightbus_django.listening.registry import registry
from lightbus_django.models import OutboxEvent, ProcessedEvent
from lightbus_django.running.worker import Worker
from tests.app.models import Effect
from tests.conftest import ROOT
from tests.servers import Server, redis_server, valkey

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()
OPERATING = (ROOT / "docs" / "operating.md").read_text()
USERS = {line.split()[2]: line for line in re.findall(r"^ACL SETUSER .+$", OPERATIONS, re.MULTILINE)}
LEVELS = {"error": "ERROR", "exception": "ERROR", "critical": "CRITICAL"}
SHOP, BOOKKEEPING = "shop.*:stream", "bookkeeping.*:stream"
FIELDS = {b"any": b"thing"}


def test_links_lead_somewhere() -> None:
    own, others = r"\]\(#([^)]*)\)", r"\]\(%s.md#([^)]*)\)"
    for text, links in ((OPERATIONS, own), (GUIDE, others % "guide"), (OPERATING, others % "operating")):
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        found = set(re.findall(links, OPERATIONS))
        assert found
        assert found <= anchors


def test_systemd_waits_longer_than_the_processes_do() -> None:
    (text,) = re.findall(r"```ini\n(.*?)```", OPERATIONS, re.DOTALL)
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(text)
    _, _, command = unit["Service"]["ExecStart"].partition("manage.py lightbus_listen ")
    parser = load_command_class("lightbus_django", "lightbus_listen").create_parser("manage.py", "lightbus_listen")
    options = parser.parse_args(command.split())
    assert int(unit["Service"]["TimeoutStopSec"]) > options.stop_timeout + 5


def test_these_are_all_lines_of_level_error() -> None:
    documented = dict(re.findall(r"^\| `([^`]+)` \| (ERROR|CRITICAL) \|", OPERATIONS, re.MULTILINE))
    del documented["…: … … failed, attempt …: …; it is a dead letter"]  # of varying level
    logged = {}
    for path in Path(lightbus_django.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(ast.Attribute(ast.Name("logger"), level), [text, *_]) if level in LEVELS:
                    logged[re.sub(r"%\S*?[a-z]", "…", ast.literal_eval(text))] = LEVELS[level]
    assert documented == logged


# --- Users ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[valkey, redis_server], ids=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(binary=request.param()) as server, server.client() as client:
        for line in USERS.values():
            client.execute_command(*line.split())
        yield server


@pytest.fixture
def admin(server: Server) -> Iterator[Any]:
    with server.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def transport_of(server: Server) -> Callable[[str], Any]:
    def make(user: str) -> Any:
        return closing(RedisClient(server.url_of(user, "a-password"), timeout=5))

    return make


def refuses(redis_client: Any, *commands: str) -> None:
    for command in commands:
        with pytest.raises(redis.exceptions.NoPermissionError):
            redis_client.servers.redis_py.execute_command(*command.split())


def used(admin: Any) -> set[str]:
    return {name.removeprefix("cmdstat_").lower() for name in admin.info("commandstats")}


def granted(user: str) -> set[str]:
    return {word.strip("()+") for word in USERS[user].split() if word.startswith(("+", "(+"))}


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_a_firing_process_fires_and_can_do_nothing_else(
    server: Server,
    admin: Any,
    lightbus: Callable[..., None],
    transport_of: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "MARK_EVERY", 1)
    admin.config_resetstat()
    lightbus(URL=server.url_of("shop-web", "a-password"), REDIS_TIMEOUT=5, SERVICE_NAME="shop")
    fire("shop.order_placed", number=1)
    on_commit("shop.order_placed", number=2)
    assert OutboxEvent.objects.get().published_at
    assert granted("shop-web") <= used(admin)
    OutboxEvent.objects.create(event_name="shop.order_placed", payload="{}", due_at="2000-01-01T00:00Z")
    relay = Worker([], service_name="shop", process_name="worker", settings=get_settings())
    relay.housekeeping.relay()
    relay.client.close()
    assert admin.xlen(SHOP) == 3

    with pytest.raises(BusError, match=r"denies its user access to 'bookkeeping\.\*:stream'.*ACL SETUSER"):
        fire("bookkeeping.booked", number=1)
    on_commit("bookkeeping.booked", number=1)
    assert "denies" in OutboxEvent.objects.get(event_name="bookkeeping.booked").error
    assert not admin.exists(BOOKKEEPING)

    with transport_of("shop-web") as redis_client:
        refuses(redis_client, f"XRANGE {SHOP} - +", f"XTRIM {SHOP} MAXLEN 0", f"DEL {SHOP}", "FLUSHALL", "KEYS *")
        with pytest.raises(BusError, match="denies its user access") as caught:
            GroupConsumer(redis_client, "a", "a").join(SHOP, "0")
        assert not isinstance(caught.value, BusUnavailable)


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_a_listening_process_can_do_all_its_work_and_nothing_else(
    server: Server,
    admin: Any,
    lightbus: Callable[..., None],
    listeners: object,
    transport_of: Callable[[str], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    @listens_to("shop.order_placed", listener_name="book", start="beginning")
    def book(event: object, number: int) -> None:
        Effect.objects.create(number=number)
        on_commit("bookkeeping.booked", number=number)

    admin.config_resetstat()
    lightbus(URL=server.url_of("shop-web", "a-password"), REDIS_TIMEOUT=5)
    fire("shop.order_placed", number=1)
    lightbus(URL=server.url_of("bookkeeping-listen", "a-password"), REDIS_TIMEOUT=5, SERVICE_NAME="bookkeeping")
    OutboxEvent.objects.create(event_name="bookkeeping.left", payload="{}", due_at="2000-01-01T00:00Z")
    worker = Worker(registry, service_name="bookkeeping", process_name="worker", settings=get_settings())
    worker.run_burst()
    worker.client.close()
    assert "denies" not in caplog.text
    assert Effect.objects.count() == 1
    assert not OutboxEvent.objects.exclude(due_at=None).exists()
    assert {fields["event_name"] for _, fields in admin.xrange(BOOKKEEPING)} == {"booked", "left"}
    publish_all_again(worker, BOOKKEEPING, admin)

    with transport_of("bookkeeping-listen") as redis_client:
        use_all_of(redis_client, admin)
        refuses(redis_client, f"DEL {SHOP}", "FLUSHALL", "KEYS *", f"XGROUP DESTROY {SHOP} bookkeeping-book")
        refuses(redis_client, f"XADD {SHOP} * a b", f"XREVRANGE {BOOKKEEPING} + -", "XLEN other.*:stream")
        with pytest.raises(BusError, match=r"denies its user access to 'other\.\*:stream'"):
            streams.last_id(redis_client, "other.*:stream")

    assert granted("bookkeeping-listen") <= used(admin)


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_a_process_that_only_relays_and_trims_can_do_so(
    server: Server, admin: Any, lightbus: Callable[..., None], listeners: object, caplog: pytest.LogCaptureFixture
) -> None:
    lightbus(URL=server.url_of("shop-web", "a-password"), REDIS_TIMEOUT=5, SERVICE_NAME="shop", STREAM_RETENTION=0)
    on_commit("shop.order_placed", number=1)
    OutboxEvent.objects.create(event_name="shop.order_placed", payload="{}", due_at="2000-01-01T00:00Z")
    lightbus(URL=server.url_of("shop-listen", "a-password"))
    worker = Worker([], service_name="shop", process_name="worker", settings=get_settings())
    worker.run_burst()
    worker.client.close()
    assert "interrupted" not in caplog.text
    assert "denies" not in caplog.text
    assert not OutboxEvent.objects.exclude(due_at=None).exists()
    assert admin.keys("*:published:*") == []
    publish_all_again(worker, SHOP, admin)


def publish_all_again(worker: Worker, stream: str, admin: Any) -> None:
    count = OutboxEvent.objects.publish_again()
    worker.run_burst()
    worker.client.close()
    assert not OutboxEvent.objects.exclude(due_at=None).exists()
    assert admin.hlen(republished.key(stream)) == count


def use_all_of(redis_client: RedisClient, admin: Any) -> None:
    """Do what needs more than one process, or a server that has failed."""
    group = "bookkeeping-retries"
    one, two = GroupConsumer(redis_client, group, "one"), GroupConsumer(redis_client, group, "two")
    assert one.join(SHOP, "0")
    (entry,) = one.read([SHOP], count=10, block=0, acknowledge={}, young=[SHOP])
    assert [found.stream_id for found in one.claim_own(SHOP, 10)] == [entry.stream_id]
    one.renew(SHOP, [entry.stream_id])
    one.release(SHOP, [entry.stream_id], idle=61, deliveries=0)
    reading = StreamReader(two, [SHOP], InFlight(), count=10, timeout=60)
    (entry,) = reading.reclaim()
    two.count_delivery(entry)
    assert two.progress(SHOP).position < streams.last_id(redis_client, SHOP)
    assert republished.look_up(redis_client, SHOP, [uuid7().bytes]) == [None]
    two.acknowledge({SHOP: [entry.stream_id]})
    admin.script_flush()
    assert streams.delete_idle_consumers(redis_client, SHOP, group, idle=0) == 1
    two.leave(SHOP)
    watch = StreamWatch(redis_client)
    watch.add([SHOP])
    assert watch.wait(0.001) == []
    watch.close()
    sign = ProcessSign(service_name="bookkeeping", process_name="worker")
    heartbeats.beat(redis_client, "a", sign)
    assert len(heartbeats.read(redis_client)) == 1
    heartbeats.end(redis_client, "a", sign)


def test_what_is_denied_within_a_script_is_told_as_well(
    server: Server, admin: Any, transport_of: Callable[[str], Any]
) -> None:
    stream_id = admin.xadd(SHOP, FIELDS)
    with transport_of("bookkeeping-listen") as redis_client:
        group_consumer = GroupConsumer(redis_client, "group", "one")
        group_consumer.join(SHOP, "0")
        group_consumer.read([SHOP], count=1, block=0, acknowledge={})
        admin.execute_command("ACL", "SETUSER", "bookkeeping-listen", "-xclaim")
        try:
            with pytest.raises(BusError, match="denies its user access"):
                group_consumer.claim_own(SHOP, 10)
        finally:
            admin.execute_command("ACL", "SETUSER", "bookkeeping-listen", "+xclaim")
        assert [entry.stream_id for entry in group_consumer.claim_own(SHOP, 10)] == [stream_id]


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_an_operator_looks_and_retires_groups(
    server: Server,
    admin: Any,
    lightbus: Callable[..., None],
    transport_of: Callable[[str], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream_id = admin.xadd(SHOP, FIELDS)
    admin.xgroup_create(SHOP, "old", "0")
    lightbus(URL=server.url_of("operator", "a-password"), REDIS_TIMEOUT=5)
    call_command("lightbus_retire")
    assert "old" in capsys.readouterr().out
    with transport_of("operator") as redis_client:
        client = redis_client.servers.redis_py
        assert client.xlen(SHOP) == len(client.xrange(SHOP)) == len(client.xinfo_groups(SHOP)) == 1
        assert client.xpending(SHOP, "old")["pending"] == len(client.xinfo_consumers(SHOP, "old")) == 0
        assert client.xinfo_stream(SHOP)["last-generated-id"] == stream_id.encode()
        client.xgroup_setid(SHOP, "old", "0")
        refuses(redis_client, f"DEL {SHOP}", "FLUSHALL", f"XADD {SHOP} * a b", "KEYS *", f"XTRIM {SHOP} MAXLEN 0")
    call_command("lightbus_retire", "old", "--no-input")
    assert admin.xinfo_groups(SHOP) == []


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_a_person_or_a_probe_looks_and_changes_nothing(
    server: Server,
    admin: Any,
    lightbus: Callable[..., None],
    listeners: object,
    transport_of: Callable[[str], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    @listens_to("shop.order_placed", listener_name="book", start="beginning")
    def book(event: object, number: int) -> None: ...

    lightbus(URL=server.url, SERVICE_NAME="bookkeeping")
    message = fire("shop.order_placed", number=1)
    worker = Worker(registry, service_name="bookkeeping", process_name="worker", settings=get_settings())
    worker.run_burst()
    worker.client.close()
    ProcessedEvent.objects.all().delete()
    with closing(RedisClient(server.url, timeout=5)) as redis_client:
        heartbeats.beat(redis_client, "a", ProcessSign(service_name="bookkeeping", process_name="worker"))

    lightbus(URL=server.url_of("support", "a-password"), REDIS_TIMEOUT=5, SERVICE_NAME="bookkeeping")
    admin.config_resetstat()
    call_command("lightbus_status", "--check", "--process", "worker")
    call_command("lightbus_status")
    call_command("lightbus_event", message.id)
    with pytest.raises(CommandError, match="1 events are missing"):
        call_command("lightbus_verify", "--since", "1h")
    captured = capsys.readouterr()
    assert "denies" not in captured.out + captured.err
    assert "KiB" in captured.out
    assert granted("support") <= used(admin)
    with transport_of("support") as redis_client:
        refuses(redis_client, f"DEL {SHOP}", f"XADD {SHOP} * a b", "FLUSHALL", "KEYS *")
        with pytest.raises(BusError, match="denies its user access"):
            heartbeats.beat(redis_client, "b", ProcessSign(service_name="bookkeeping", process_name="worker"))


@pytest.mark.parametrize("user", ["shop-web", "bookkeeping-listen"])
def test_another_database_needs_select(user: str, server: Server, admin: Any) -> None:
    url = server.url_of(user, "a-password").removesuffix("/0") + "/1"
    stream = SHOP if user == "shop-web" else BOOKKEEPING
    with closing(RedisClient(url, timeout=5)) as redis_client:
        with pytest.raises(BusError, match="'select'"):
            redis_client.append(stream, FIELDS)
        admin.execute_command("ACL", "SETUSER", user, "+select")
        try:
            redis_client.append(stream, FIELDS)
        finally:
            admin.execute_command("ACL", "SETUSER", user, "-select")


def test_the_name_of_redis_py_is_told_where_it_may_be(server: Server, admin: Any) -> None:
    version = tuple(map(int, admin.info("server")["redis_version"].split(".")))
    if version < (7, 2):
        with pytest.raises(redis.ResponseError, match="Unknown command"):
            admin.execute_command("ACL", "SETUSER", "shop-web", "+client|setinfo")
        return
    admin.execute_command("ACL", "SETUSER", "shop-web", "+client|setinfo")
    admin.acl_log_reset()
    with closing(RedisClient(server.url_of("shop-web", "a-password"), timeout=5)) as redis_client:
        redis_client.append(SHOP, FIELDS)
    assert admin.acl_log() == []
