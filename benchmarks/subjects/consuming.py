"""Consuming with a handler that does nothing: our loop, and bare ones."""

import json
from collections.abc import Callable
from typing import Any

from . import ours as lightbus
from .bare import CONSUMER, GROUP, decode_value, filled
from .events import STREAM, Client, connect, fill
from .stopwatch import Stopwatch
from .tally import Tally, check_stream, check_tables

Sample = dict[str, float]


def ours(events: int, *, handler: str = "nothing", known: int = 0, **options: Any) -> Sample:
    """Our loop, with the handler of this name, options of `@listens_to`, and so many keys in the inbox already."""
    tally, client = Tally(), connect()
    consumer = lightbus.consumer(getattr(tally, handler), **options)
    consumer.step(block=0)  # joins the group
    fill(client, events)
    with Stopwatch() as stopwatch:
        lightbus.step_until(consumer, tally, events)
    consumer.stop()
    tally.check(events)
    check_stream(client, events)
    prices = 0 if handler == "nothing" else events
    check_tables(prices=prices, keys=known + events if options.get("idempotent", True) else 0)
    return stopwatch.sample(events)


def bare(
    events: int, *, count: int = 100, decode: Callable[[bytes], Any] = decode_value, xack_each: bool = False
) -> Sample:
    """redis-py's XREADGROUP, and one XACK a batch."""
    tally, client = Tally(), filled(events)
    with Stopwatch() as stopwatch:
        while tally.count < events:
            for _, entries in client.xreadgroup(GROUP, CONSUMER, {STREAM: ">"}, count=count):
                for stream_id, fields in entries:
                    arguments = {k[1:].decode(): decode(v) for k, v in fields.items() if k[:1] == b":"}
                    tally.nothing(stream_id, **arguments)
                    if xack_each:
                        client.xack(STREAM, GROUP, stream_id)
                if not xack_each:
                    client.xack(STREAM, GROUP, *[stream_id for stream_id, _ in entries])
    return _checked(stopwatch, tally, client, events)


def bare_with_json(events: int) -> Sample:
    return bare(events, decode=json.loads)


def held(events: int) -> Sample:
    """redis-py's connection, held: XACK goes with the next read, and replies are left as they come."""
    tally, client = Tally(), filled(events)
    connection = connect(protocol=2).connection_pool.get_connection()
    read = connection.pack_command("XREADGROUP", "GROUP", GROUP, CONSUMER, "COUNT", 100, "STREAMS", STREAM, ">")
    stream_ids: list[bytes] = []
    with Stopwatch() as stopwatch:
        while tally.count < events:
            xack = connection.pack_command("XACK", STREAM, GROUP, *stream_ids) if stream_ids else []
            connection.send_packed_command([*xack, *read])
            if stream_ids:
                connection.read_response()
            ((_, entries),) = connection.read_response()
            for _, flat in entries:
                fields = zip(flat[::2], flat[1::2], strict=True)
                tally.nothing(None, **{k[1:].decode(): decode_value(v) for k, v in fields if k[:1] == b":"})
            stream_ids = [stream_id for stream_id, _ in entries]
        connection.send_command("XACK", STREAM, GROUP, *stream_ids)
        connection.read_response()
    return _checked(stopwatch, tally, client, events)


def _checked(stopwatch: Stopwatch, tally: Tally, client: Client, events: int) -> Sample:
    tally.check(events)
    check_stream(client, events)
    return stopwatch.sample(events)
