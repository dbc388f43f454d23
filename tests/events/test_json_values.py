"""Values on the bus: as what they derive from, and never as another value."""

import dataclasses
import enum
import json
from collections import OrderedDict, UserDict, defaultdict
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from django.utils.functional import lazystr
from django.utils.safestring import SafeString, mark_safe
from hypothesis import given
from hypothesis import strategies as st

from lightbus_django.events.codec import decode, encode, encode_payload
from lightbus_django.events.message import new_message
from lightbus_django.exceptions import InvalidPayload
from lightbus_django.listening.arguments import Arguments

LOCAL_MEAN_TIME = timezone(timedelta(minutes=53, seconds=28))
PRAGUE = ZoneInfo("Europe/Prague")


def derived(base: type, **members: object) -> type:
    return type("Derived", (base,), members)


def on_the_bus(value: object) -> str:
    return encode_payload({"key": value})["key"].decode()


def shout(self: object, *args: object) -> str:
    return "something else"


MISLEADING = dict.fromkeys(["__str__", "__repr__", "isoformat", "__format__"], shout)
"""What a class may override, though its instances are still the values that they derive from."""

VALUES = [
    "text",
    5,
    2**70,
    1.5,
    Decimal("9.990"),
    UUID(int=5),
    b"\xff\x00",
    bytearray(b"ab"),
    datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001
    datetime(1890, 1, 1, tzinfo=LOCAL_MEAN_TIME),
    date(2026, 1, 2),
    time(1, 2, 3, 4),
    time(1, 2, 3, tzinfo=LOCAL_MEAN_TIME),
    timedelta(days=-1, microseconds=5),
    {"a": 1},
    [1],
    (1, 2),
    {3},
    frozenset({3}),
]


def rebuilt(cls: type, value: Any) -> Any:
    """Return `value` as an instance of `cls`, which derives from its type."""
    if isinstance(value, (datetime, time)):
        names = ["year", "month", "day"] if isinstance(value, datetime) else []
        names += ["hour", "minute", "second", "microsecond", "tzinfo"]
        return cls(*[getattr(value, name) for name in names])
    if isinstance(value, date):
        return cls(value.year, value.month, value.day)
    if isinstance(value, timedelta):
        return cls(value.days, value.seconds, value.microseconds)
    return cls(int=value.int) if isinstance(value, UUID) else cls(value)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__} {value}")
@pytest.mark.parametrize("members", [{}, MISLEADING], ids=["plain", "misleading"])
def test_what_derives_from_a_type_is_written_as_that(value, members):
    instance = rebuilt(derived(type(value), **members), value)
    assert on_the_bus(instance) == on_the_bus(value)
    assert on_the_bus({"deep": [instance]}) == on_the_bus({"deep": [value]})


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (mark_safe("<b>"), "<b>"),
        (lazystr(mark_safe("<b>")), "<b>"),
        (OrderedDict(b=1), {"b": 1}),
        (defaultdict(list, b=1), {"b": 1}),
        (UserDict(b=1), {"b": 1}),
        (memoryview(b"abcd")[::2], b"ac"),
        ({SafeString("a"): 1}, {"a": 1}),
    ],
)
def test_so_is_what_others_derive(value, plain):
    assert on_the_bus(value) == on_the_bus(plain)


def test_a_key_of_a_payload_may_be_derived_too():
    payload = encode_payload({mark_safe("key"): 1})
    assert {type(key) for key in payload} == {str}


def test_an_enum_member_is_its_value_whatever_it_derives_from():
    class Text(enum.StrEnum):
        A = "a"

    class Share(float, enum.Enum):
        HALF = 0.5

    class Day(date, enum.Enum):
        FIRST = 2026, 1, 1

    class Priced(Decimal, enum.Enum):
        ONE = Decimal("1.50")

    class Bits(enum.IntFlag):
        X = 1
        Y = 2

    class Odd(str, enum.Enum):  # noqa: UP042
        A = "code"

        def __new__(cls, code):
            member = str.__new__(cls, code)
            member._value_ = 7
            return member

    assert [json.loads(on_the_bus(member)) for member in (Text.A, Share.HALF, Day.FIRST, Priced.ONE, Odd.A)] == [
        "a",
        0.5,
        "2026-01-01",
        "1.50",
        7,
    ]
    assert on_the_bus(Bits.X | Bits.Y) == "3"
    assert on_the_bus({Text.A: 1, Bits.Y: 2}) == '{"a":1,"2":2}'


def test_to_bus_comes_before_what_a_value_derives_from():
    for base in (str, int, float, dict, Decimal):
        assert on_the_bus(derived(base, __to_bus__=lambda self: "own form")()) == '"own form"'


class Row(NamedTuple):
    value: object


@dataclasses.dataclass
class Item:
    value: object


class Struct(msgspec.Struct):
    value: object


class NotATime(datetime):
    """As pandas' NaT."""

    __hash__ = None

    def __eq__(self, other):
        return False

    def __ne__(self, other):
        return True


class Half(enum.Enum):
    NOT_A_NUMBER = Decimal("NaN")


NO_NUMBERS = [
    float("nan"),
    float("-inf"),
    derived(float)("nan"),
    Decimal("NaN"),
    Decimal("-Infinity"),
    Decimal("sNaN"),
    Decimal("NaN123"),
    derived(Decimal)("NaN"),
    Half.NOT_A_NUMBER,
]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda value: value,
        lambda value: [(value,)],
        lambda value: {"a": {"b": value}},
        lambda value: {value: 1},
        Row,
        Item,
        Struct,
    ],
)
def test_what_is_no_number_is_refused_at_any_depth(value, wrap):
    if type(value) is Decimal and value.is_snan() and isinstance(wrap(1), dict) and 1 in wrap(1):
        pytest.skip("can't be hashed")
    with pytest.raises(InvalidPayload, match=r"the_key.*(NaN and infinity|no JSON form for .*Derived)"):
        encode_payload({"the_key": wrap(value)})


def test_what_is_no_time_is_refused():
    with pytest.raises(InvalidPayload, match="is not a point in time"):
        encode_payload({"at": NotATime(1, 1, 1)})


@pytest.mark.parametrize(
    "value", ["\ud800", ["a\udfff"], {"\ud800": 1}, derived(str)("\ud800"), mark_safe("\ud800"), Item("\ud800")]
)
def test_lone_surrogates_are_refused(value):
    with pytest.raises(InvalidPayload, match=r"the_key.* surrogates not allowed"):
        encode_payload({"the_key": value})


class TestKeys:
    @pytest.mark.parametrize(
        ("key", "name"),
        [
            (1, "1"),
            (-(2**70), str(-(2**70))),
            (1.5, "1.5"),
            (Decimal("1.50"), "1.50"),
            (UUID(int=1), str(UUID(int=1))),
            (date(2026, 1, 2), "2026-01-02"),
            (datetime(2026, 1, 2, tzinfo=LOCAL_MEAN_TIME), "2026-01-02T00:00:00+00:53:28"),
            (timedelta(1), "P1D"),
            (b"ab", "YWI="),
            ('a"b', 'a"b'),
            (lazystr("a"), "a"),
        ],
    )
    def test_are_text(self, key, name):
        assert json.loads(on_the_bus({key: "x"})) == {name: "x"}

    @pytest.mark.parametrize(
        "key",
        [None, True, (1, 2), Row(1), frozenset({1}), object(), range(3), Item],
        ids=lambda key: type(key).__name__,
    )
    def test_that_have_no_text_are_refused(self, key):
        with pytest.raises(InvalidPayload, match="payload key 'the_key'"):
            encode_payload({"the_key": [{key: 1}]})

    def test_that_would_be_the_same_text_are_refused(self):
        with pytest.raises(InvalidPayload, match="two keys of a dict"):
            encode_payload({"the_key": {1: "a", "1": "b"}})


# --- There and back --------------------------------------------------------------------------


def carried(value: object, hint: Any) -> Any:
    """Return what a handler gets that annotates its argument with `hint`."""

    def handler(event, **kwargs):
        pass

    handler.__annotations__["kwargs"] = hint
    message = new_message("shop.order_placed", {"key": value})
    payload = decode(encode(message, encode_payload(message.payload)), "1-1").payload
    return Arguments(handler).read(payload)["key"]


class Zone(tzinfo):
    """As those of pytz: an old time zone, as the local mean time of its place."""

    def __repr__(self):
        return "Zone()"

    def utcoffset(self, moment):
        return -timedelta(hours=4, minutes=56, seconds=2)

    def dst(self, moment):
        return None

    def tzname(self, moment):
        return "LMT"


class Span(NamedTuple):
    start: datetime
    text: str


@dataclasses.dataclass
class Opening:
    opens: time
    spans: list[datetime]
    note: str = ""


MOMENTS = [
    datetime(1890, 1, 1, 12, tzinfo=LOCAL_MEAN_TIME),
    datetime(1890, 1, 1, 12, 0, 0, 5, tzinfo=Zone()),
    datetime(1850, 1, 1, tzinfo=PRAGUE),
    datetime(2026, 1, 1, tzinfo=timezone(timedelta(seconds=-1, microseconds=-5))),
    datetime(1, 1, 1, tzinfo=LOCAL_MEAN_TIME),
    datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=Zone()),
    datetime(2025, 10, 26, 2, 30, fold=1, tzinfo=PRAGUE),
    datetime(2026, 1, 1, tzinfo=UTC),
    datetime(1, 1, 1),  # noqa: DTZ001
]


class TestOffsetsWithSeconds:
    @pytest.mark.parametrize("moment", MOMENTS, ids=str)
    def test_of_datetimes_are_kept(self, moment):
        iso = moment.isoformat()
        assert on_the_bus(moment) == f'"{iso.removesuffix("+00:00") + "Z" if iso.endswith("+00:00") else iso}"'
        assert carried(moment, datetime).isoformat() == iso
        assert carried(moment, datetime | None).isoformat() == iso
        assert [item.isoformat() for item in carried([moment, moment], list[datetime])] == [iso, iso]

    @pytest.mark.parametrize(
        "zone", [LOCAL_MEAN_TIME, Zone(), UTC, PRAGUE, None, timezone(timedelta(hours=-3))], ids=str
    )
    def test_of_times_are_kept(self, zone):
        value = time(1, 2, 3, 4, tzinfo=zone)
        back = carried(value, time)
        assert back.isoformat() == value.isoformat()

    def test_are_kept_at_any_depth(self):
        moment = MOMENTS[0]
        opening = Opening(time(8, tzinfo=LOCAL_MEAN_TIME), [moment, MOMENTS[7]], "all day")
        assert carried(opening, Opening) == opening
        assert carried({moment: opening}, dict[datetime, Opening]) == {moment: opening}
        span = Span(moment, moment.isoformat())
        assert carried([span], list[Span]) == [span]
        assert carried({"a": span}, dict[str, Span]) == {"a": span}

    def test_are_text_without_an_annotation(self):
        assert carried(MOMENTS[0], Any) == carried(MOMENTS[0], str) == "1890-01-01T12:00:00+00:53:28"


class Hue(enum.IntEnum):
    RED = 1


BACK = {
    int: st.integers(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    timedelta: st.timedeltas(),
    date: st.dates(),
    datetime: st.datetimes(timezones=st.none() | st.timezones()),
    time: st.times(timezones=st.none() | st.just(UTC) | st.just(LOCAL_MEAN_TIME)),
    UUID: st.uuids(),
    bytes: st.binary(),
    str: st.text(),
    dict[int, Decimal]: st.dictionaries(st.integers(), st.decimals(allow_nan=False, allow_infinity=False)),
    dict[date, list[int]]: st.dictionaries(st.dates(), st.lists(st.integers())),
    dict[UUID, bool]: st.dictionaries(st.uuids(), st.booleans()),
    dict[Hue, str]: st.dictionaries(st.just(Hue.RED), st.text()),
}


@pytest.mark.parametrize("hint", BACK, ids=str)
@given(data=st.data())
def test_every_value_comes_back(hint, data):
    value = data.draw(BACK[hint])
    back = carried(value, hint)
    if isinstance(value, datetime):  # in an hour that comes twice, it equals none of another zone
        assert back.isoformat() == value.isoformat()
    else:
        assert back == value
    if hint in (float, Decimal):
        assert str(back) == str(value)  # -0.0, 1E+3
