"""A value of each kind, and the JSON that Lightbus makes of it. Both sides read this file."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, TypedDict
from uuid import UUID


class Size(Enum):
    LARGE = "large"


@dataclass
class Money:
    amount: Decimal
    currency: str


class Line(TypedDict):
    price: Decimal
    tags: list[str | None]


class Details(TypedDict):
    empty: dict[str, str]
    huge: int
    lines: list[Line]
    ratio: float


SAMPLES: dict[str, tuple[Any, Any]] = {
    "number": (1, 1),
    "price": (Decimal("9.990"), "9.990"),
    "changed_at": (datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC), "2026-01-02T03:04:05.000678+00:00"),
    "local_time": (
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        "2026-01-02T03:04:05+05:30",
    ),
    "day": (date(2028, 2, 29), "2028-02-29"),
    "offer": (UUID("9f1c2ab4-0000-4000-8000-00000000beef"), "9f1c2ab4-0000-4000-8000-00000000beef"),
    "size": (Size.LARGE, "large"),
    "total": (Money(Decimal("1000.00"), "EUR"), {"amount": "1000.00", "currency": "EUR"}),
    "picture": (b"\x00\xff\xfe", "AP/+"),
    "text": ('Grüße, "日本" 🎉 𝄞\n\x00', 'Grüße, "日本" 🎉 𝄞\n\x00'),
    "is_sale": (True, True),
    "nothing": (None, None),
    # Keys in order, for Lightbus sorts them.
    "details": (
        {"empty": {}, "huge": 2**70, "lines": [{"price": Decimal("0.10"), "tags": ["ü", None]}], "ratio": 0.1},
        {"empty": {}, "huge": 2**70, "lines": [{"price": "0.10", "tags": ["ü", None]}], "ratio": 0.1},
    ),
}

VALUES = {name: value for name, (value, _) in SAMPLES.items()}
ON_THE_BUS = {name: json for name, (_, json) in SAMPLES.items()}
