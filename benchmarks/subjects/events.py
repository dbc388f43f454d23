"""The event that all subjects fire and handle: 4 fields, in the form that it has on the bus."""

import os
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import redis

from lightbus_django.events.ids import uuid7

API_NAME, EVENT_NAME = "prices", "changed"
EVENT = f"{API_NAME}.{EVENT_NAME}"
STREAM = f"{API_NAME}.*:stream"
AT = datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=UTC)

encode_value = msgspec.json.Encoder().encode

Client = Any
"""A redis.Redis; its annotations speak of its asynchronous client in the same breath."""

_FILL_SIZE = 10_000
_FILL = """
local number_at
for i = 4, #ARGV, 2 do
    if ARGV[i] == ':number' then number_at = i + 1 end
end
for number = tonumber(ARGV[2]), tonumber(ARGV[3]) do
    local fields = {unpack(ARGV, 4)}
    fields[2] = ARGV[1] .. string.format('%012x', number)
    fields[number_at - 3] = string.format('%d', number)
    redis.call('XADD', KEYS[1], '*', unpack(fields))
end
"""


def connect(**options: Any) -> Client:
    """Return a client, by default as redis-py makes it; of a cluster, if the URL names one."""
    url = os.environ["LIGHTBUS_URL"]
    if "+cluster" not in url:
        return redis.Redis.from_url(url, **options)
    return redis.RedisCluster.from_url(url.replace("+cluster", "").partition(",")[0], **options)


def stream_of(api_name: str) -> str:
    return f"{api_name}.*:stream"


def payload(number: int) -> dict[str, Any]:
    return {"sku": "A-1", "price": Decimal("9.99"), "number": number, "at": AT}


def fields_of(event_id: UUID, number: int) -> dict[bytes, bytes]:
    """Return an event in its form on the bus, by the shortest way there is."""
    fields = {
        b"id": str(event_id).encode(),
        b"api_name": API_NAME.encode(),
        b"event_name": EVENT_NAME.encode(),
        b"version": b"1",
    }
    for name, value in payload(number).items():
        fields[b":" + name.encode()] = encode_value(value)
    return fields


def fill(client: Client, events: int, *, api: str = API_NAME, start: int = 0) -> None:
    """Put events of an API on the bus, numbered from `start` on; their ids are in order, as UUIDv7 are."""
    prefix = str(uuid7())[:24]
    fields = {**fields_of(uuid7(), 0), b"api_name": api.encode()}
    template = [part for pair in fields.items() for part in pair]
    for first in range(start, start + events, _FILL_SIZE):
        last = min(first + _FILL_SIZE, start + events) - 1
        client.eval(_FILL, 1, stream_of(api), prefix, first, last, *template)
