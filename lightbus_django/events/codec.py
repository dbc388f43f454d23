"""An event message as fields of a stream entry, in Lightbus's wire format."""

import json
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from lightbus_django.exceptions import InvalidPayload, UnreadableEvent

from .json_values import encode_json
from .message import EventMessage

Fields = dict[bytes, bytes]
"""One entry of a stream, as Redis holds it."""
NOOP: Fields = {b"": b""}


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
