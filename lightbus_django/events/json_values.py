"""Values as JSON, in the same form as Lightbus writes them.

An instance of a subclass is written like its base type, with the methods of the base type: a subclass may override them
with something else, and libraries such as freezegun replace types by subclasses.
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
    """Return a value as JSON.

    Raises:
        TypeError, ValueError, RecursionError, msgspec.MsgspecError: JSON can't represent it without loss.
    """
    return _encode(value if type(value) in _PLAIN else _to_jsonable(value))


def _to_jsonable(value: Any) -> Any:
    """Convert a value to types that msgspec writes as we need them."""
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
    # Other types that msgspec knows, such as its structs.
    return _to_jsonable(msgspec.to_builtins(value, builtin_types=_BUILTIN, enc_hook=_refuse))


def _refuse(value: Any) -> NoReturn:
    raise TypeError(f"no JSON form for {type(value).__module__}.{type(value).__qualname__}")


def _object(value: Mapping[Any, Any]) -> dict[str, Any]:
    fields = {key if type(key) is str else _key(key): _to_jsonable(item) for key, item in value.items()}
    if len(fields) < len(value):
        raise ValueError("two keys of a dict become the same text")
    return fields


def _key(key: Any) -> str:
    name = _to_jsonable(key)
    if isinstance(name, str):
        return name
    if name is None or isinstance(name, (bool, list, dict)):
        raise TypeError(f"a {type(key).__qualname__} can't be a dict key in JSON")
    return _encode(name).decode().strip('"')


def _array(value: Any) -> list[Any]:
    return [_to_jsonable(item) for item in value]


def _tuple(value: Any) -> Any:
    return _to_jsonable(value._asdict()) if hasattr(value, "_asdict") else _array(value)  # named tuple: an object


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
        raise ValueError("it is not a point in time")  # NaT of pandas
    return _utc(datetime.isoformat(value))


def _utc(text: str) -> str:
    return text[:-6] + "Z" if text.endswith("+00:00") else text


_WRITERS: dict[type, Callable[[Any], Any]] = {
    float: _float,
    Decimal: _decimal,
    dict: _object,
    list: _array,
    tuple: _tuple,
    # msgspec drops the seconds of a UTC offset, which local mean times have.
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
"""How each type and its subclasses are written. A type comes before its own base types."""

_BUILTIN = [type_ for type_ in _WRITERS if type_ not in (dict, list, tuple, set, frozenset, str, int, float, Mapping)]
_encode = msgspec.json.Encoder(enc_hook=_refuse).encode
