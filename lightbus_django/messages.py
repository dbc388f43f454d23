"""EventMessage and its form on the bus, the one that Lightbus gave it."""

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec

from .exceptions import InvalidEventName, InvalidPayload, UnreadableEvent
from .ids import uuid7
from .jsonable import encode_json
from .times import published_at

Fields = dict[bytes, bytes]
"""One entry of a stream, as Redis holds it."""

MAX_NAME_LENGTH = 200
NOOP: Fields = {b"": b""}
_EVENT_NAME = re.compile(r"[\w-]+(\.[\w-]+)+")


class EventMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One fired event.

    `payload` is what was fired; in a handler, as JSON knows it (the handler's arguments are
    converted to its annotations). `stream_id` is None until the event is on the bus. `attempt`
    counts the deliveries to this consumer group, from 1.
    """

    id: str
    api_name: str
    event_name: str
    version: int = 1
    payload: dict[str, Any]
    stream_id: str | None = None
    attempt: int = 1

    @property
    def name(self) -> str:
        return f"{self.api_name}.{self.event_name}"

    @property
    def published_at(self) -> datetime | None:
        """When Redis took the event; aware, in UTC. None if that is unknown."""
        return None if self.stream_id is None else published_at(self.stream_id, self.id)


def new_message(name: str, payload: dict[str, Any]) -> EventMessage:
    """Return a message with a new id.

    Raises:
        InvalidEventName: `name` is not `api_name.event`.
    """
    api_name, event_name = split_name(name if isinstance(name, str) else repr(name))
    return EventMessage(id=str(uuid7()), api_name=api_name, event_name=event_name, payload=payload)


def is_name(name: object) -> bool:
    """Whether this is an event name, `api_name.event`."""
    return isinstance(name, str) and len(name) <= MAX_NAME_LENGTH and _EVENT_NAME.fullmatch(name) is not None


@lru_cache(maxsize=4096)
def split_name(name: str) -> tuple[str, str]:
    """Return API name and event of an event name; the event is what follows the last dot."""
    if not is_name(name):
        raise InvalidEventName(
            f"{name!r} is not an event name: it takes an API name, a dot and an event, such as "
            f"'competitor_prices.changed', of letters, digits, '_' and '-', {MAX_NAME_LENGTH} at most"
        )
    api_name, _, event_name = name.rpartition(".")
    return api_name, event_name


def stream_key(name: str, stream_use: str) -> str:
    """Return the key of the stream that carries the event `name`, as Lightbus names it."""
    if stream_use == "per_event":
        return f"{name}:stream"
    return f"{split_name(name)[0]}.*:stream"


# --- Encoding ---------------------------------------------------------------------------------


def encode_payload(payload: Mapping[str, Any], max_size: float = math.inf) -> dict[str, bytes]:
    """Return the JSON of each value.

    Args:
        payload: what is fired.
        max_size: how many bytes of JSON are allowed in all.

    Raises:
        InvalidPayload: naming the key, and the type of a value that has no form on the bus; or the size
            of a payload that is too large.
    """
    encoded = {}
    for key, value in payload.items():
        if not isinstance(key, str) or not key or not key.isprintable():
            raise InvalidPayload(f"payload key {key!r} can't be a field on the bus: use a plain, non-empty string")
        try:
            encoded[str.__str__(key)] = encode_json(value)
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise InvalidPayload(
                f"payload key {key!r}: a value of type {type(value).__qualname__} can't be put on the bus ({error})"
            ) from error
    if (size := sum(map(len, encoded.values()))) > max_size:
        raise InvalidPayload(
            f"the payload has {size} bytes, and MAX_PAYLOAD_SIZE allows {max_size}: put the bulk of it elsewhere, "
            f"and send where it is"
        )
    return encoded


def encode(message: EventMessage, payload: Mapping[str, bytes]) -> Fields:
    """Return the fields of a message whose payload is encoded already."""
    fields = {
        b"id": message.id.encode(),
        b"api_name": message.api_name.encode(),
        b"event_name": message.event_name.encode(),
        b"version": str(message.version).encode(),
    }
    for key, value in payload.items():
        fields[b":" + key.encode()] = value
    return fields


# --- Decoding ---------------------------------------------------------------------------------


def decode(fields: Mapping[bytes, bytes], stream_id: str, attempt: int = 1) -> EventMessage:
    """Return the message that `fields` hold.

    Raises:
        UnreadableEvent: saying what is wrong with which field.
    """
    payload: dict[str, Any] = {}
    name = b""
    try:
        for name, value in fields.items():
            if name[:1] == b":":
                payload[name[1:].decode()] = _decode_json(value)
            else:
                value.decode()
    except UnicodeDecodeError as error:
        raise UnreadableEvent(f"field {name!r} is not UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UnreadableEvent(f"field {name!r} is not JSON: {error}") from error
    for required in (b"id", b"api_name", b"event_name", b"version"):
        if not fields.get(required):
            raise UnreadableEvent(f"the metadata field {required.decode()!r} is missing or empty")
    try:
        version = int(fields[b"version"])
    except ValueError:
        raise UnreadableEvent(f"the version is not a whole number: {fields[b'version']!r:.50}") from None
    return EventMessage(
        id=fields[b"id"].decode(),
        api_name=fields[b"api_name"].decode(),
        event_name=fields[b"event_name"].decode(),
        version=version,
        payload=payload,
        stream_id=stream_id,
        attempt=attempt,
    )


def _decode_json(value: bytes) -> Any:
    try:
        return _msgspec_decode(value)
    except msgspec.DecodeError:
        # The standard library reads what Python writes beyond JSON, and Lightbus is written in
        # Python: NaN and Infinity.
        return json.loads(value.decode())


_msgspec_decode = msgspec.json.Decoder().decode


def dump_fields(fields: Mapping[bytes, bytes]) -> str:
    """Return any fields as JSON text that every database stores; nothing of them is lost."""
    pairs = [
        [name.decode(errors="surrogateescape"), value.decode(errors="surrogateescape")]
        for name, value in fields.items()
    ]
    return json.dumps(pairs)


def load_fields(text: str) -> Fields:
    """The reverse of `dump_fields`."""
    return {
        name.encode(errors="surrogateescape"): value.encode(errors="surrogateescape")
        for name, value in json.loads(text)
    }
