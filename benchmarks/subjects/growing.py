"""What an event costs when much waits, when much was handled before, and when much was left by a process that died."""

from typing import Any

from django.db import connection

from . import consuming
from . import ours as lightbus
from .events import EVENT, STREAM, Client, connect, fill
from .settling import settle
from .stopwatch import Stopwatch
from .tally import Tally, check_stream

Sample = dict[str, float]

DEAD_FOR = 3_600_000
"""Milliseconds since the dead process touched what it left."""

# UUIDv7 of the last minutes, in the order of their time, as the inbox has them.
_INSERT_KEYS = """
INSERT INTO lightbus_django_processedevent (event_id, consumer_group, event_name, processed_at, discarded)
SELECT substr(time, 1, 8) || '-' || substr(time, 9, 4) || '-7' || substr(drawn, 1, 3) || '-a' || substr(drawn, 4, 3)
    || '-' || substr(drawn, 7, 12), %s, %s, now(), false
FROM (
    SELECT lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - %s + number), 12, '0') AS time,
        md5(number::text) AS drawn
    FROM generate_series(1, %s) AS number
) AS keys
"""


def backlog(events: int, *, backlog: int) -> Sample:
    """Handle all of such a backlog, and the like again until it were `events`; only the handling is timed."""
    client, stopwatch = connect(), Stopwatch()
    done = 0
    while done < events:
        client.flushdb()
        tally = Tally()
        consumer = lightbus.consumer(tally.nothing, idempotent=False)
        consumer.step(block=0)  # joins the group
        fill(client, backlog)
        with stopwatch:
            lightbus.step_until(consumer, tally, backlog)
        consumer.stop()
        tally.check(backlog)
        check_stream(client, backlog)
        done += backlog
    return stopwatch.sample(done)


def inbox(events: int, *, rows: int) -> Sample:
    """Handle events while the inbox has so many keys; on PostgreSQL."""
    with connection.cursor() as cursor:
        cursor.execute(_INSERT_KEYS, [lightbus.GROUP, EVENT, rows, rows])
    settle()
    return consuming.ours(events, known=rows)


def pending(events: int, *, died: bool, handler: str = "nothing", **options: Any) -> Sample:
    """Handle what is new, or what was delivered to another process that died."""
    tally, client = Tally(), connect()
    client.xgroup_create(STREAM, lightbus.GROUP, id="0", mkstream=True)
    fill(client, events)
    if died:
        _deliver_to_the_dead(client)
    consumer = lightbus.consumer(getattr(tally, handler), **options)
    with Stopwatch() as stopwatch:
        lightbus.step_until(consumer, tally, events)
    consumer.stop()
    tally.check(events)
    check_stream(client, events)
    return stopwatch.sample(events)


def _deliver_to_the_dead(client: Client) -> None:
    while reply := client.xreadgroup(lightbus.GROUP, "dead", {STREAM: ">"}, count=1000):
        stream_ids = [stream_id for stream_id, _ in reply[0][1]]
        client.xclaim(STREAM, lightbus.GROUP, "dead", 0, stream_ids, idle=DEAD_FOR, justid=True)
