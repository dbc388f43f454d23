"""Any bytes may be in a stream: ten thousand entries that nobody should write, and good events in between.

The entries come from a generator with a fixed seed, so that a failure can be seen again; and from hypothesis,
which looks for others and makes what fails small.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightbus_django import EventMessage, listens_to
from lightbus_django.bus.group_reads import Entry
from lightbus_django.events.codec import NOOP, load_fields
from lightbus_django.listening.delivery import Delivery
from lightbus_django.models import FailedEvent, ProcessedEvent
from tests.app.models import Effect
from tests.conftest import drain

KEY = "shop.*:stream"
GROUP = "price-monitor-record"
WANTED = b"shop", b"order_placed"

pytestmark = pytest.mark.django_db(transaction=True)

Pairs = list[tuple[bytes, bytes]]

ODD_JSON = [
    *[b"", b" ", b"null", b"true", b"0", b"-0", b"-1", b"1.0", b"1.5", b"1e5", b"1e999", b"-1e999", b"1e-999"],
    *[b"NaN", b"Infinity", b"-Infinity", b"nan", b"None", b"True", b"'1'", b"{", b"[1,", b'"', b"[1]]", b"01"],
    *[str(2**power + step).encode() for power in (31, 32, 53, 63, 64, 70, 1000) for step in (-1, 0)],
    *[b"9" * 5000, b"-" + b"9" * 4000, b"0." + b"1" * 5000, b"1" + b"0" * 400 + b".0"],
    *[b"[" * depth + b"]" * depth for depth in (100, 900, 5000, 100_000)],
    *[b'{"a":' * depth + b"1" + b"}" * depth for depth in (100, 900, 5000)],
    *[b'"\\ud800"', b'"\\u0000"', b'"\x00"', b'"\xff\xfe"', '"\U0001f40e"'.encode(), b'"\\q"', b'"\\ud83d\\udc0e"'],
    *[b'{"a": 1, "a": 2}', b'{"": 1}', b'{"\\u0000": 1}', b"{1: 2}", b"[]", b"{}", b'[null, {"price": []}]'],
    *[b'"1"', b'" 1 "', b'"much"', b'"1e9999999"', b'"NaN"', b'"sNaN"', b'"Infinity"', '"\u0661"'.encode()],
    *[b'"2026-02-30"', b'"9999-12-31T23:59:59+23:59"', b'"0001-01-01T00:00:00-23:59"', b"-62135596801", b"1e18"],
    *[b'"P999999999999D"', b"\xef\xbb\xbf1", b'"00000000-0000-0000-0000-00000000000"', b'"' + b"x" * 100_000 + b'"'],
]
ODD_VERSIONS = [b"2.0", b"v1", b" 1 ", b"-1", b"1_0", b"9" * 5000, b"1e3", "\u0661".encode(), b"\x00", b"0x1", b""]
ODD_IDS = [b"", b" ", b"\x00", b"x" * 10_000, b"\xff", "\u00fcn\u00ef".encode(), b"Abc", b"abc", b"abc ", b"%s"]
ODD_NAMES = [b"", b" ", b"*", b"shop ", b"Shop", b"shop\x00", b"sh\xffop", b"order_placed\n", b"a.b", b"x" * 5000]
ODD_KEYS = [
    *[b"", b":", b"::", b":event", b":self", b":kwargs", b":class", b":a b", b":\x00", b":\xff", b":number\x00"],
    *[b"number", b"ID", b"id ", b"native_id", b"stream", b"\xff", b"\x00", b":__class__", b":" + b"k" * 5000],
]
ARGUMENTS = [b":number", b":price", b":day", b":at", b":wait", b":offer", b":lines", b":size", b":text", b":other"]


class Size(Enum):
    LARGE = "large"


@dataclass
class Line:
    sku: str
    price: Decimal


@pytest.fixture
def record(listeners, lightbus):
    """A listener that wants each kind of argument, and that stores and logs what it gets."""
    lightbus(MAX_ATTEMPTS=1)

    @listens_to("shop.order_placed")
    def record(
        event: EventMessage,
        number: int,
        price: Decimal | None = None,
        day: date | None = None,
        at: datetime | None = None,
        wait: timedelta = timedelta(0),
        offer: UUID | None = None,
        lines: list[Line] = (),
        size: Size = Size.LARGE,
        text: str = "",
        **kwargs: Any,
    ) -> None:
        repr((event, price, day, at, wait, offer, lines, size, kwargs))
        Effect.objects.create(name=text[:200], number=number)


class Generator:
    """Entries to put into a stream, of each sort."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.sorts = [self.any_bytes, self.near_miss, self.near_miss, self.odd_arguments, self.odd_arguments]

    def entry(self) -> Pairs:
        return self.random.choice(self.sorts)()

    def any_bytes(self) -> Pairs:
        return [(self.bytes(), self.bytes()) for _ in range(self.random.randint(1, 6))]

    def near_miss(self) -> Pairs:
        """An event with something wrong with its metadata, its keys, or both."""
        pairs = self.event(number=b"1")
        for _ in range(self.random.randint(1, 3)):
            place = self.random.randrange(len(pairs))
            match self.random.randrange(6):
                case 0 if len(pairs) > 1:
                    del pairs[place]
                case 1:
                    pairs.insert(place, self.random.choice(pairs))
                case 2:
                    pairs.append((self.random.choice(ODD_KEYS), self.random.choice(ODD_JSON)))
                case 3:
                    pairs[place] = (pairs[place][0], self.bytes())
                case _:
                    name = pairs[place][0]
                    odd = {b"id": ODD_IDS, b"version": ODD_VERSIONS, b":number": ODD_JSON}.get(name, ODD_NAMES)
                    pairs[place] = (name, self.random.choice(odd))
        return pairs

    def odd_arguments(self) -> Pairs:
        """An event whose metadata is good and whose arguments may be anything."""
        pairs = self.event(number=self.random.choice([b"1", b"2", self.random.choice(ODD_JSON)]))
        for _ in range(self.random.randint(0, 3)):
            pairs.append((self.random.choice(ARGUMENTS), self.random.choice([*ODD_JSON, self.bytes()])))
        return pairs

    def event(self, number: bytes) -> Pairs:
        event_id = self.random.choice([self.random.randbytes(8).hex(), str(self.random.randrange(300))])
        return good(event_id, number)

    def bytes(self) -> bytes:
        return self.random.randbytes(self.random.choice([0, 1, 2, 8, 40]))


def good(event_id: str, number: bytes) -> Pairs:
    metadata = [(b"id", event_id.encode()), (b"api_name", WANTED[0]), (b"event_name", WANTED[1]), (b"version", b"1")]
    return [*metadata, (b":number", number)]


def add(client: redis.Redis, entries: list[Pairs]) -> None:
    pipeline = client.pipeline(transaction=False)
    for pairs in entries:
        pipeline.execute_command("XADD", KEY, "*", *(text for pair in pairs for text in pair))
    pipeline.execute()


@pytest.fixture
def raw(r, lightbus_url) -> Iterator[redis.Redis]:
    """A client that decodes nothing."""
    with redis.Redis.from_url(lightbus_url) as client:
        yield client


def check_all_have_ended(raw: redis.Redis) -> dict[str, int]:
    """Each entry is handled, a dead letter that holds it as it is, or none of our business; return how many of each."""
    assert raw.xpending(KEY, GROUP)["pending"] == 0
    keys = set(ProcessedEvent.objects.values_list("event_id", flat=True))
    failed = {failed.event_id: failed for failed in FailedEvent.objects.all()}
    assert all(dead_letter.is_dead_letter and dead_letter.error for dead_letter in failed.values())
    assert failed.keys() <= keys
    counts = {"handled": 0, "dead letter": 0, "not ours": 0}
    stream = {stream_id.decode(): fields for stream_id, fields in raw.xrange(KEY)}
    for stream_id, fields in stream.items():
        names = fields.get(b"api_name"), fields.get(b"event_name")
        if fields == NOOP or (all(names) and names != WANTED):
            counts["not ours"] += 1
            continue
        delivery = Delivery.of(Entry(KEY, stream_id, fields))
        assert delivery.key in keys
        if delivery.problem:
            assert failed[delivery.key].stream_id == stream_id
        counts["dead letter" if delivery.key in failed else "handled"] += 1
    for dead_letter in failed.values():
        assert load_fields(dead_letter.fields) == stream[dead_letter.stream_id]
    return counts


# --- Tests ----------------------------------------------------------------------------------------


def test_ten_thousand_entries_that_nobody_should_write(record, consume, raw):
    generator = Generator(seed=20260101)
    consumer = consume()
    goods = iter(range(1, 10_000))
    fired = []
    for _ in range(10):
        entries = []
        for _ in range(10):
            entries += [generator.entry() for _ in range(100)]
            number = next(goods)
            fired.append(number)
            entries.append(good(f"good-{number}", str(number + 1_000_000).encode()))
        entries.append(good(f"good-{generator.random.choice(fired)}", b"1"))  # once more, under an id that was there
        add(raw, entries)
        drain(consumer)
    raw.xadd(KEY, dict(generator.event(b"3")), id="18446744073709551615-18446744073709551615")
    drain(consumer)

    counts = check_all_have_ended(raw)
    assert sum(counts.values()) > 10_000
    assert all(count > 300 for count in counts.values()), counts
    numbers = Effect.objects.filter(number__gt=1_000_000, number__lt=1_010_000).order_by("number")
    assert [number - 1_000_000 for number in numbers.values_list("number", flat=True)] == fired


odd_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
).map(lambda value: json.dumps(value).encode())
names = st.binary(max_size=10) | st.sampled_from(ODD_KEYS + ARGUMENTS)
values = st.binary(max_size=30) | odd_json
pairs = st.lists(st.tuples(names, values), max_size=4)
metadata = st.fixed_dictionaries(
    {},
    optional={
        b"id": st.binary(max_size=10) | st.text(max_size=10).map(str.encode),
        b"api_name": st.just(WANTED[0]) | values,
        b"event_name": st.just(WANTED[1]) | values,
        b"version": st.just(b"1") | values,
        b":number": st.just(b"1") | values,
    },
).map(lambda fields: list(fields.items()))
entries = st.builds(lambda head, tail: (head + tail) or [(b"", b"")], metadata, pairs)


@pytest.fixture
def fuzzed(record, consume, raw) -> Callable[[list[Pairs]], None]:
    """Handle entries with a good event behind each, and see that all have ended as they should."""
    consumer = consume()

    def handle(some: list[Pairs]) -> None:
        raw.xtrim(KEY, maxlen=0, approximate=False)
        for model in (ProcessedEvent, FailedEvent, Effect):
            model.objects.all().delete()
        for number, pairs in enumerate(some):
            add(raw, [pairs, good(f"good-{number}", str(number + 1_000_000).encode())])
        drain(consumer)
        check_all_have_ended(raw)
        assert Effect.objects.filter(number__gte=1_000_000, number__lt=1_000_000 + len(some)).count() == len(some)

    return handle


@settings(max_examples=50, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(entries, min_size=1, max_size=20))
def test_entries_that_hypothesis_thinks_of(fuzzed, some):
    fuzzed(some)
