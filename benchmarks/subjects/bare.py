"""What the references share: a group of redis-py's own, read in batches."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from .events import STREAM, Client, connect, fill

GROUP = "bare"
CONSUMER = "measured"

decode_value: Callable[[bytes], Any] = msgspec.json.Decoder().decode

Arguments = dict[str, Any]


def filled(events: int) -> Client:
    """Return a client of a server whose group has so many events before it."""
    client = connect()
    client.xgroup_create(STREAM, GROUP, mkstream=True)
    fill(client, events)
    return client


def batches(client: Client, consumer: str = CONSUMER) -> Iterator[list[tuple[str, Arguments]]]:
    """Yield the ids and payloads of 100 events at a time; they are acknowledged when the next are asked for."""
    while reply := client.xreadgroup(GROUP, consumer, {STREAM: ">"}, count=100):
        ((_, entries),) = reply
        yield [(fields[b"id"].decode(), payload_of(fields)) for _, fields in entries]
        client.xack(STREAM, GROUP, *[stream_id for stream_id, _ in entries])


def payload_of(fields: dict[bytes, bytes]) -> Arguments:
    return {name[1:].decode(): decode_value(value) for name, value in fields.items() if name[:1] == b":"}
