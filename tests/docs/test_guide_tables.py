"""docs/guide.md is true: its tables, commands, links and names are those of the code."""

import ast
import enum
import re
import shlex
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
import pytest
from django.contrib import admin
from django.core.management import load_command_class
from django.db import transaction
from django.utils import timezone, translation
from django.utils.translation import gettext_lazy

import lightbus_django
from lightbus_django import (
    BusError,
    BusUnavailable,
    ConfigurationError,
    EventMessage,
    InvalidEvent,
    InvalidEventName,
    InvalidPayload,
    LightbusError,
    fire,
    listens_to,
    on_commit,
)
from lightbus_django.conf import Settings, format_name
from lightbus_django.models import FailedEvent

from .conftest import GUIDE, SECTIONS

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


def test_links_lead_somewhere():
    text = GUIDE.read_text()
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in SECTIONS}
    links = set(re.findall(r"\]\(#([^)]*)\)", text))
    assert len(links) > 10
    assert links <= anchors


def test_commands_are_there_with_these_options():
    lines = [
        line
        for section in SECTIONS.values()
        for content, _ in section.code("console")
        for line in content.splitlines()
        if line.startswith("python manage.py")
    ]
    assert len(lines) > 3
    for line in lines:
        _, program, name, *arguments = shlex.split(line)
        app = "lightbus_django" if name.startswith("lightbus") else "django.core"
        parser = load_command_class(app, name).create_parser(program, name)
        parser.parse_args(arguments)  # exits where it does not know an option


class Color(enum.Enum):
    RED = "red"


class Point(NamedTuple):
    x: int


@dataclass
class Line:
    x: int


class Money(str):
    def __to_bus__(self) -> str:
        return f"{self} EUR"

    @classmethod
    def __from_bus__(cls, value: str) -> "Money":
        return cls(value.removesuffix(" EUR"))


ID = uuid.UUID(int=7)
PAYLOADS = {  # what is fired, on the bus, the annotation, what the handler gets
    "`str`, `int`, `float`, `bool`, `None`": [(value, value, Any, value) for value in ("é", 2**70, 1.5, True, None)],
    "`Decimal`, `UUID`": [(Decimal("9.90"), "9.90", Decimal, Decimal("9.90")), (ID, str(ID), uuid.UUID, ID)],
    "`datetime`, `date`, `time`, `timedelta`": [
        (value, text, type(value), value)
        for value, text in {
            datetime(2026, 3, 1, 12, tzinfo=UTC): "2026-03-01T12:00:00Z",
            datetime(2026, 3, 1, 12): "2026-03-01T12:00:00",  # noqa: DTZ001
            date(2026, 3, 1): "2026-03-01",
            time(12, 30): "12:30:00",
            timedelta(seconds=3): "PT3S",
        }.items()
    ],
    "an `Enum` member": [(Color.RED, "red", Color, Color.RED)],
    "`bytes`": [(b"x", "eA==", bytes, b"x")],
    "`list`, `tuple`, `set`": [
        ([ID], [str(ID)], list[uuid.UUID], [ID]),
        ((1, "a"), [1, "a"], tuple[int, str], (1, "a")),
        ({Decimal("1.0")}, ["1.0"], set[Decimal], {Decimal("1.0")}),
    ],
    "`dict`": [
        ({1: Decimal("1.0")}, {"1": "1.0"}, dict, {"1": "1.0"}),
        ({1: Decimal("1.0")}, {"1": "1.0"}, dict[str, Decimal], {"1": Decimal("1.0")}),
    ],
    "a dataclass, a named tuple": [
        (Line(1), {"x": 1}, Line, Line(1)),
        (Point(1), {"x": 1}, Point, Point(1)),
    ],
    "a lazy translation": [(gettext_lazy("Yes"), "Ja", str, "Ja")],
    "an object with `__to_bus__()`": [(Money("9.99"), "9.99 EUR", Money, Money("9.99"))],
}


def test_payloads_are_those_of_the_table():
    assert [row[0] for row in SECTIONS["Payloads"].table()] == list(PAYLOADS)


@pytest.mark.parametrize(
    ("value", "on_the_bus", "annotation", "arrives"), [case for cases in PAYLOADS.values() for case in cases]
)
def test_payloads(value, on_the_bus, annotation, arrives, work):
    got = []

    @listens_to("shop.tested")
    def handler(event: EventMessage, value: annotation) -> None:
        got.append((event.payload["value"], value))

    work()
    with translation.override("de"):
        fire("shop.tested", value=value)
    work()
    assert got == [(on_the_bus, arrives)]
    assert type(got[0][1]) is type(arrives)


def test_arguments_without_annotation_and_the_event(work):
    got = []

    @listens_to("shop.order_placed")
    def handler(event: EventMessage, total, **kwargs: Any) -> None:
        got.append((event, total, kwargs))

    work()
    message = fire("shop.order_placed", total=Decimal("9.90"), event="a name taken", other=[1])
    work()
    [(event, total, kwargs)] = got
    assert total == "9.90"
    assert kwargs == {"other": [1]}
    assert event.payload == {"total": "9.90", "event": "a name taken", "other": [1]}
    assert (event.id, event.stream_id, event.version) == (message.id, message.stream_id, 1)
    assert event.published_at == pytest.approx(timezone.now(), abs=timedelta(seconds=30))
    documented = {name for row in SECTIONS["Arguments"].table() for name in re.findall(r"`(\w+)`", row[0])}
    properties = {name for name, value in vars(EventMessage).items() if isinstance(value, property)}
    assert documented == properties | set(EventMessage.__struct_fields__)


def test_the_tree_of_errors(r):
    errors = [getattr(lightbus_django, row[0].strip("`")) for row in SECTIONS["Errors"].table()]
    assert errors == [InvalidEventName, InvalidPayload, BusUnavailable, BusError]
    assert [error.__base__ for error in errors] == [InvalidEvent, InvalidEvent, BusError, LightbusError]
    with transaction.atomic():
        with pytest.raises(InvalidEventName):
            on_commit("nonsense")
        with pytest.raises(InvalidPayload):
            on_commit("shop.order_placed", value=object())
        on_commit("shop.order_placed")
    assert r.xlen("shop.*:stream") == 1
    r.set("prices.*:stream", "no stream")
    with pytest.raises(BusError):
        fire("prices.changed")


def test_the_times_of_the_retries(work):
    @listens_to("shop.order_placed")
    def fails(event: EventMessage) -> None:
        raise ValueError

    rows = SECTIONS["Retries"].table()
    defaults = {field.encode_name: field.default for field in msgspec.structs.fields(Settings)}
    assert len(rows) == defaults["MAX_ATTEMPTS"]
    work()
    for _ in range(10):
        fire("shop.order_placed")
    for attempt, _ in rows:
        work()
        now = timezone.now()
        failures = list(FailedEvent.objects.all())
        assert {failed.attempts for failed in failures} == {int(attempt)}
        if int(attempt) == len(rows):
            assert all(failed.is_dead_letter for failed in failures)
            break
        low, high = map(int, rows[int(attempt)][1].split(" to "))
        waits = [(failed.next_attempt_at - now).total_seconds() for failed in failures]
        assert low - 5 < min(waits) <= max(waits) <= high
        assert max(waits) - min(waits) > 0.1, "there is jitter"
        FailedEvent.objects.update(next_attempt_at=now)


def test_the_words_of_the_admin():
    text = SECTIONS["In the admin"].text
    page = admin.site.get_model_admin(FailedEvent)
    actions = {str(getattr(page, action).short_description) for action in page.actions}
    assert set(re.findall(r"- \*\*(.+?)\*\*", text)) == actions
    permissions = {f"lightbus_django.{codename}" for codename, _ in FailedEvent._meta.permissions}
    assert set(re.findall(r"`(lightbus_django\.\w+)`", text)) == permissions


def test_placeholders():
    documented = {name for row in SECTIONS["Process names"].table() for name in re.findall(r"`(\{\w+\})`", row[0])}
    with pytest.raises(ConfigurationError) as raised:
        format_name("{nonsense}")
    assert documented == set(re.findall(r"\{\w+\}", str(raised.value))) - {"{nonsense}"}
    assert re.fullmatch(r"[a-z]+-[a-z]+-\d+", format_name("{friendly}"))
    assert re.fullmatch(r"[a-z0-9]{8}", format_name("{random8}"))


def test_settings():
    documented = {}
    for key, default, unit, meaning in SECTIONS["Settings"].table():
        documented[key.strip("`")] = default if default == "required" else ast.literal_eval(default.strip("`"))
        assert unit
        assert meaning
    fields = msgspec.structs.fields(Settings)
    assert documented == {field.encode_name: "required" if field.required else field.default for field in fields}
