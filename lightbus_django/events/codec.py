"""Event messages as fields of a stream entry, in Lightbus's wire format."""

import json
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from lightbus_django.exceptions import InvalidPayload, UnreadableEvent

from .json_values import encode_json
from .message import EventMessage

Fields = dict[bytes, bytes]
"""The content of a stream entry: names and values as Redis stores them."""

NOOP: Fields = {b"": b""}
"""An entry that Lightbus adds when it creates a stream."""


# --- Encoding ---------------------------------------------------------------------------------


def encode_payload(payload: Mapping[str, Any], max_size: float = math.inf) -> dict[str, bytes]:
    """Return each value as JSON.

    Args:
        payload: the payload of an event.
        max_size: maximum size of all values together, in bytes of JSON.

    Raises:
        InvalidPayload: a key or value can't be represented, or the payload is too large.
    """
    encoded = {}
    for key, value in payload.items():
        if not isinstance(key, str) or not key or not key.isprintable():
            raise InvalidPayload(f"payload key {key!r} can't be a field on the bus: use a plain, non-empty string")
        try:
            encoded[str.__str__(key)] = encode_json(value)
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise InvalidPayload(
                f"payload key {key!r}: a value of type {type(value).__qualname__} can't be converted to JSON ({error})"
            ) from error
    if (size := sum(map(len, encoded.values()))) > max_size:
        raise InvalidPayload(
            f"the payload has {size} bytes, and MAX_PAYLOAD_SIZE allows {max_size}: store large data elsewhere and "
            f"send a reference to it"
        )
    return encoded


def encode(message: EventMessage, payload: Mapping[str, bytes]) -> Fields:
    """Return the fields of a message. `payload` is its payload as `encode_payload` returns it."""
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
    """Return the message in the fields of a stream entry.

    Raises:
        UnreadableEvent: a field is missing or can't be read.
    """
    payload: dict[str, Any] = {}
    name = b""
    try:
        for name, value in fields.items():
            if name[:1] == b":":
                try:
                    payload[name[1:].decode()] = _decode_json(value)
                except msgspec.DecodeError:
                    # Lightbus is written in Python, whose JSON may contain NaN and Infinity. The standard library reads
                    # them.
                    payload[name[1:].decode()] = json.loads(value.decode())
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


_decode_json = msgspec.json.Decoder().decode


def dump_fields(fields: Mapping[bytes, bytes]) -> str:
    """Return fields as JSON text that every database can store, without losing anything."""
    pairs = [
        [name.decode(errors="surrogateescape"), value.decode(errors="surrogateescape")]
        for name, value in fields.items()
    ]
    return json.dumps(pairs)


def load_fields(text: str) -> Fields:
    """Return the fields from a text of `dump_fields`."""
    return {
        name.encode(errors="surrogateescape"): value.encode(errors="surrogateescape")
        for name, value in json.loads(text)
    }
