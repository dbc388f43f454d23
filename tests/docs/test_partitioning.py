"""docs/partitioning.md: with its SQL, the tables are partitioned and all goes on; and it is undone."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import redis
from django.core.management import call_command
from django.db import connection, models, transaction
from django.urls import reverse
from model_bakery import baker

from lightbus_django import fire, on_commit
from lightbus_django.events.times import first_uuid
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent
from tests.conftest import ROOT, drain
from tests.listening.streams import KEY, effects, pending
from tests.operating.conftest import record as record

PAGE = (ROOT / "docs" / "partitioning.md").read_text()
FUNCTIONS, INBOX, OUTBOX, EVERY_DAY, UNDO = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
DAY = timedelta(days=1)

pytestmark = [
    pytest.mark.skipif(connection.vendor != "postgresql", reason="only PostgreSQL has such partitions"),
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("r"),
]


def execute(sql: str, *parameters: Any) -> list[Any]:
    """Execute SQL; return what the last query in it returned."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return [row[0] for row in cursor.fetchall()] if cursor.description else []


@pytest.fixture
def convert(transactional_db: None) -> Iterator[Callable[[], None]]:
    """Yield what partitions the tables; in the end they are as before."""
    before = describe()

    def convert() -> None:
        for sql in (FUNCTIONS, INBOX, OUTBOX):
            execute(sql)

    yield convert
    execute(UNDO)
    execute("DROP FUNCTION lightbus_first_id, lightbus_create_partitions, lightbus_drop_partitions")
    assert describe() == before


@pytest.fixture
def partitioned(convert: Callable[[], None]) -> None:
    convert()


def describe() -> list[Any]:
    """Return what the database knows about the columns and indexes of the two tables."""
    tables = [model._meta.db_table for model in (ProcessedEvent, OutboxEvent)]
    with connection.cursor() as cursor:
        constraints = [connection.introspection.get_constraints(cursor, table) for table in tables]
        return [*constraints, *(connection.introspection.get_table_description(cursor, table) for table in tables)]


def places(model: type[ProcessedEvent] | type[OutboxEvent]) -> list[str]:
    """Return the partition of each row."""
    table = model._meta.db_table
    names = execute(f"SELECT tableoid::regclass::text FROM {table} ORDER BY id")
    return [name.removeprefix(f"{table}_") for name in names]


def of_day(days: int) -> datetime:
    """Return the noon of a day so many days ahead."""
    return datetime.now(UTC).replace(hour=12) + days * DAY


def drop_until(days: int) -> None:
    """Drop the partitions of the days until so many days ahead."""
    for model in (ProcessedEvent, OutboxEvent):
        execute("SELECT lightbus_drop_partitions(%s, %s)", model._meta.db_table, of_day(days))


def deliver_again(r: redis.Redis) -> None:
    for _, fields in r.xrange(KEY):
        r.xadd(KEY, fields)


@pytest.mark.usefixtures("record")
def test_rows_stay_and_their_events_are_known(convert, consume, housekeeping, r) -> None:
    consumer = consume()
    with transaction.atomic():
        on_commit("shop.order_placed", number=1)
    r.xadd(KEY, {"id": f"f{uuid4()}", "api_name": "shop", "event_name": "order_placed", "version": "1", ":number": "2"})
    drain(consumer)

    convert()

    assert places(ProcessedEvent) == ["first", "default"]
    assert places(OutboxEvent) == ["first"]
    last = ProcessedEvent.objects.latest("id").id
    fire("shop.order_placed", number=3)
    drain(consumer)
    assert ProcessedEvent.objects.latest("id").id > last
    deliver_again(r)
    drain(consumer)
    assert effects() == [1, 2, 3]
    housekeeping().relay()
    assert OutboxEvent.objects.published().count() == 1


@pytest.mark.usefixtures("record", "partitioned")
@pytest.mark.parametrize("publish", [fire, on_commit])
def test_events_are_handled_once(publish, consume, housekeeping, r) -> None:
    consumer = consume()
    for number in range(5):
        publish("shop.order_placed", number=number)
    housekeeping().relay()
    drain(consumer)
    deliver_again(r)
    drain(consumer)
    assert effects() == [0, 1, 2, 3, 4]
    assert pending(r) == 0
    assert set(places(ProcessedEvent)) == {"first"}


@pytest.mark.usefixtures("partitioned")
def test_each_day_has_a_partition() -> None:
    names = [f"{of_day(number):%Y%m%d}" for number in range(1, 9)]
    create = "SELECT lightbus_create_partitions('lightbus_django_outboxevent', 8)"
    for number in range(9):
        OutboxEvent.objects.create(id=first_uuid(of_day(number)), event_name="shop.order_placed", payload="{}")
    assert places(OutboxEvent) == ["first", *names[:-1], "default"]
    assert execute(create) == [f"lightbus_django_outboxevent_{names[-1]}"]
    assert places(OutboxEvent) == ["first", *names]
    assert execute(create) == []


@pytest.mark.usefixtures("record", "partitioned")
def test_what_is_needed_outlives_its_partition(consume, housekeeping, r) -> None:
    consumer = consume()
    for number in range(3):
        on_commit("shop.order_placed", number=number, broken="yes" if number == 1 else "")
    housekeeping().relay()
    drain(consumer)
    refused = OutboxEvent.objects.create(id=first_uuid(of_day(0)), event_name="x.y", payload="{}", due_at=of_day(1))

    drop_until(2)

    failed = FailedEvent.objects.get()
    assert ProcessedEvent.objects.get().event_id == failed.event_id
    assert OutboxEvent.objects.get() == refused
    assert places(ProcessedEvent) == places(OutboxEvent) == ["default"]
    r.xadd(KEY, dict(r.xrange(KEY)[1][1]))
    drain(consumer)
    assert FailedEvent.objects.get().attempts == failed.attempts


@pytest.mark.usefixtures("record", "partitioned")
def test_every_day(consume, housekeeping, capsys) -> None:
    old, needed, young = (
        baker.make(ProcessedEvent, event_id=f"f{uuid4()}", consumer_group="g", processed_at=of_day(-days))
        for days in (40, 40, 20)
    )
    baker.make(FailedEvent, event_id=needed.event_id, consumer_group="g")
    today = baker.make(ProcessedEvent, event_id=str(first_uuid(of_day(0))), processed_at=of_day(-40))
    cutoffs = {}
    for table in ("inbox", "outbox"):
        call_command("lightbus_prune", "--cutoff", table)
        cutoffs[table] = capsys.readouterr().out.strip()

    keeper = housekeeping()
    while keeper.prune():
        pass
    assert ProcessedEvent.objects.count() == 4, "workers leave partitioned tables alone"
    execute(EVERY_DAY.replace(":'inbox'", f"'{cutoffs['inbox']}'").replace(":'outbox'", f"'{cutoffs['outbox']}'"))

    assert set(ProcessedEvent.objects.all()) == {needed, young, today}, old


@pytest.mark.usefixtures("record", "partitioned")
def test_people_see_what_they_saw(consume, admin_client, capsys) -> None:
    consumer = consume()
    with transaction.atomic():
        on_commit("shop.order_placed", number=1)
    drain(consumer)
    event = ProcessedEvent.objects.get()
    for model in ("processedevent", "outboxevent"):
        page = admin_client.get(reverse(f"admin:lightbus_django_{model}_changelist"), {"q": event.event_id})
        assert event.event_id in page.text
    call_command("lightbus_republish", "--since", "1h")
    call_command("lightbus_verify", "--since", "1h")
    call_command("lightbus_event", event.event_id)
    call_command("makemigrations", "--check")
    assert "handled" in capsys.readouterr().out
    drain(consumer)
    assert effects() == [1]


@pytest.mark.usefixtures("partitioned")
def test_a_later_version_may_add_a_column() -> None:
    field = models.IntegerField(null=True)
    field.set_attributes_from_name("later")
    field.model = ProcessedEvent
    with connection.schema_editor() as editor:
        editor.add_field(ProcessedEvent, field)
        editor.add_index(ProcessedEvent, models.Index(fields=["processed_at"], name="later"))
    assert "later" in execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'lightbus_django_processedevent_first'::regclass"
    )
    with connection.schema_editor() as editor:
        editor.remove_index(ProcessedEvent, models.Index(fields=["processed_at"], name="later"))
        editor.remove_field(ProcessedEvent, field)
