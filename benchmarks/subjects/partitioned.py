"""The inbox and the outbox in partitioned tables, as docs/partitioning.md makes them, and in plain ones."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.db import connection

from lightbus_django.models import OutboxEvent, ProcessedEvent

from . import committing, consuming

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "partitioning.md"

Sample = dict[str, float]


def inbox(events: int, *, partitions: bool, **options: Any) -> Sample:
    with _tables(partitions=partitions):
        return consuming.ours(events, **options)


def outbox(events: int, *, partitions: bool) -> Sample:
    with _tables(partitions=partitions):
        return committing.ours(events)


@contextmanager
def _tables(*, partitions: bool) -> Iterator[None]:
    """Partition the tables, which are empty, for the time of the block, with a partition for each day of a month."""
    if not partitions:
        yield
        return
    functions, of_inbox, of_outbox, _, undo = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with connection.cursor() as cursor:
        for sql in (functions, of_inbox, of_outbox):
            cursor.execute(sql)
        for model in (ProcessedEvent, OutboxEvent):
            cursor.execute("SELECT lightbus_create_partitions(%s, 30)", [model._meta.db_table])
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(undo)
            cursor.execute("DROP FUNCTION lightbus_first_id, lightbus_create_partitions, lightbus_drop_partitions")
