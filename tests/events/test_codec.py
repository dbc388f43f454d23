"""Messages as fields of a stream entry: written as Lightbus writes them, and read whatever they contain."""

import contextlib
import dataclasses
import enum
import json
from collections import OrderedDict
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

import pytest
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe
from hypothesis import given
from hypothesis import strategies as st

from lightbus_django.events.codec import decode, dump_fields, encode, encode_payload, load_fields
from lightbus_django.events.message import new_message
from lightbus_django.exceptions import InvalidPayload, UnreadableEvent


class Point(NamedTuple):
    x: object
    y: object


@dataclasses.dataclass
class Article:
    sku: str
    points: list[Point]


class Colour(enum.Enum):
    RED = Decimal("1.5")


class Level(enum.IntEnum):
    HIGH = 3


class Money:
    def __to_bus__(self):
        return {"amount": Decimal("1.0"), "currency": "EUR"}


@pytest.mark.parametrize(
    ("value", "on_the_bus"),
    [
        (None, None),
        (True, True),
        (5, 5),
        (2**70, 2**70),
        (1.5, 1.5),
        ("žluťoučký 🐎 \x00", "žluťoučký 🐎 \x00"),
        (mark_safe("<b>"), "<b>"),
        (lazystr("lazy"), "lazy"),
        (Decimal("9.990"), "9.990"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), "2026-01-02T03:04:05.000006Z"),
        (datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05"),  # noqa: DTZ001
        (date(2026, 1, 2), "2026-01-02"),
        (b"\xff\x00", "/wA="),
        (memoryview(b"ab"), "YWI="),
        ((1, 2), [1, 2]),
        ({3}, [3]),
        (frozenset({3}), [3]),
        (Point(1, 2), {"x": 1, "y": 2}),
        ([Point(1, {"deep": Point(3, 4)})], [{"x": 1, "y": {"deep": {"x": 3, "y": 4}}}]),
        (Article("A", [Point(1, 2)]), {"sku": "A", "points": [{"x": 1, "y": 2}]}),
        (Colour.RED, "1.5"),
        (Level.HIGH, 3),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        ({1: "one"}, {"1": "one"}),
        (1 + 2j, "(1+2j)"),
        (Money(), {"amount": "1.0", "currency": "EUR"}),
    ],
)
def test_values_are_written_as_lightbus_writes_them(value, on_the_bus):
    assert json.loads(encode_payload({"key": value})["key"]) == on_the_bus


cyclic: list = []
cyclic.append(cyclic)


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        (object(), "object"),
        ([object()], "list"),
        ({"deep": {(1, 2): 3}}, "dict"),
        (float("nan"), "float"),
        ([float("inf")], "list"),
        ("\ud800", "str"),
        (range(3), "range"),
        (cyclic, "list"),
        (Article, "type"),
    ],
)
def test_a_value_without_a_form_on_the_bus_is_named_by_key_and_type(value, type_name):
    with pytest.raises(InvalidPayload, match=f"'the_key': a value of type {type_name} "):
        encode_payload({"fine": 1, "the_key": value})


@pytest.mark.parametrize("key", ["", "\ud800", "a\nb", "\x00", 5])
def test_a_key_that_the_wire_cannot_carry_is_refused(key):
    with pytest.raises(InvalidPayload, match="payload key"):
        encode_payload({key: 1})


def test_nothing_but_the_metadata_that_lightbus_knows_is_written():
    message = new_message("auth.user_registered", {"name": "Eva"})
    assert encode(message, encode_payload(message.payload)) == {
        b"id": message.id.encode(),
        b"api_name": b"auth",
        b"event_name": b"user_registered",
        b"version": b"1",
        b":name": b'"Eva"',
    }


def test_a_message_is_read_as_it_was_written():
    message = new_message("auth.user_registered", {"name": "Eva", "tags": [1, None]})
    read = decode(encode(message, encode_payload(message.payload)), "1700000000123-4", attempt=2)
    assert (read.id, read.name, read.payload) == (message.id, message.name, message.payload)
    assert read.published_at == datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=UTC)
    assert read.attempt == 2
    assert message.published_at is None


GOOD = {b"id": b"1", b"api_name": b"a", b"event_name": b"b", b"version": b"1"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({b"id": b""}, "'id' is missing or empty"),
        ({b"version": b"2.0"}, "version is not a whole number"),
        ({b"version": b"v2"}, "version is not a whole number"),
        ({b":x": b"{"}, "b':x' is not JSON"),
        ({b":x": b""}, "b':x' is not JSON"),
        ({b":x": b'"\xff"'}, "b':x' is not UTF-8"),
        ({b":\xff": b"1"}, "is not UTF-8"),
        ({b"api_name": b"\xff"}, "is not UTF-8"),
        ({b":x": b"[" * 100_000}, "is not JSON"),
    ],
)
def test_what_cannot_be_read_says_why(change, reason):
    with pytest.raises(UnreadableEvent, match=reason):
        decode({**GOOD, **change}, "1-1")


@pytest.mark.parametrize("missing", GOOD)
def test_metadata_that_is_missing_is_named(missing):
    with pytest.raises(UnreadableEvent, match=f"'{missing.decode()}' is missing"):
        decode({name: value for name, value in GOOD.items() if name != missing}, "1-1")


def test_fields_that_nobody_knows_and_numbers_beyond_json_do_no_harm():
    message = decode({**GOOD, b"traceparent": b"00-1", b"": b"x", b":x": b"NaN", b":y": b"[-Infinity]"}, "1-1")
    assert message.payload["x"] != message.payload["x"]
    assert message.payload["y"] == [float("-inf")]


@given(st.dictionaries(st.binary(max_size=20), st.binary(max_size=50)))
def test_any_bytes_are_read_or_refused_and_kept_to_the_letter(fields):
    assert load_fields(dump_fields(fields)) == fields
    with contextlib.suppress(UnreadableEvent):
        decode(fields, "1-1")
