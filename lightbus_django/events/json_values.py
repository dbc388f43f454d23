"""Values as JSON, in the form that Lightbus gave them.

An instance of a subclass is written as the type that it derives from, by that type's own methods: what a subclass
overrides may not fit, and libraries such as freezegun put subclasses in place of the types.
"""

import dataclasses
import math
import uuid
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, NoReturn

import msgspec
from django.utils.functional import Promise

_NO_NUMBER = "NaN and infinity are not JSON numbers"
_PLAIN = frozenset({str, int, bool, type(None), uuid.UUID, bytes})


def encode_json(value: Any) -> bytes:
    """Return the JSON of a value.

    Raises:
        TypeError, ValueError, RecursionError, msgspec.MsgspecError: it has none, or not one that keeps the value.
    """
    return _encode(value if type(value) in _PLAIN else _to_jsonable(value))


def _to_jsonable(value: Any) -> Any:
    """Bring to msgspec what it doesn't know, or writes otherwise."""
    if type(value) in _PLAIN:
        return value
    if write := _WRITERS.get(type(value)):
        return write(value)
    if hasattr(value, "__to_bus__"):
        return _to_jsonable(value.__to_bus__())
    if isinstance(value, Enum):
        return _to_jsonable(value.value)
    for base, write in _WRITERS.items():
        if isinstance(value, base):
            return write(value)
    if hasattr(value, "_asdict"):
        return _to_jsonable(value._asdict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _to_jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (complex, Promise)):
        return _to_jsonable(str(value))
    # What else msgspec knows: its own structs, for instance.
    return _to_jsonable(msgspec.to_builtins(value, builtin_types=_BUILTIN, enc_hook=_refuse))


def _refuse(value: Any) -> NoReturn:
    raise TypeError(f"no JSON form for {type(value).__module__}.{type(value).__qualname__}")


def _object(value: Mapping[Any, Any]) -> dict[str, Any]:
    fields = {key if type(key) is str else _key(key): _to_jsonable(item) for key, item in value.items()}
    if len(fields) < len(value):
        raise ValueError("two keys of a dict are the same text")
    return fields


def _key(key: Any) -> str:
    name = _to_jsonable(key)
    if isinstance(name, str):
        return name
    if name is None or isinstance(name, (bool, list, dict)):
        raise TypeError(f"a {type(key).__qualname__} can't be a key")
    return _encode(name).decode().strip('"')


def _array(value: Any) -> list[Any]:
    return [_to_jsonable(item) for item in value]


def _tuple(value: Any) -> Any:
    return _to_jsonable(value._asdict()) if hasattr(value, "_asdict") else _array(value)  # a named tuple is an object


def _float(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(_NO_NUMBER)
    return float.__float__(value)


def _decimal(value: Decimal) -> str:
    if not Decimal.is_finite(value):
        raise ValueError(_NO_NUMBER)
    return Decimal.__str__(value)


def _datetime(value: datetime) -> str:
    if type(value) is not datetime and value != value:
        raise ValueError("it is not a point in time")  # pandas' NaT
    return _utc(datetime.isoformat(value))


def _utc(text: str) -> str:
    return text[:-6] + "Z" if text.endswith("+00:00") else text


_WRITERS: dict[type, Callable[[Any], Any]] = {
    float: _float,
    Decimal: _decimal,
    dict: _object,
    list: _array,
    tuple: _tuple,
    # msgspec cuts the seconds of an offset to UTC, which local mean times have.
    datetime: _datetime,
    date: date.isoformat,
    time: lambda value: _utc(time.isoformat(value)),
    timedelta: timedelta.__pos__,
    set: _array,
    frozenset: _array,
    str: str.__str__,
    int: int.__int__,
    uuid.UUID: lambda value: uuid.UUID(int=value.int),
    bytes: lambda value: bytes(memoryview(value)),
    bytearray: lambda value: bytes(memoryview(value)),
    memoryview: bytes,
    Mapping: _object,
}
"""How a type, and what derives from it, is written; a type before those that it derives from."""

_BUILTIN = [type_ for type_ in _WRITERS if type_ not in (dict, list, tuple, set, frozenset, str, int, float, Mapping)]
_encode = msgspec.json.Encoder(enc_hook=_refuse).encode
