"""Events between Django services: fired once committed, handled once, over Redis Streams."""

from typing import TYPE_CHECKING, Any

from .exceptions import (
    BusError,
    BusUnavailable,
    ConfigurationError,
    InvalidEvent,
    InvalidEventName,
    InvalidPayload,
    LightbusError,
    UnreadableEvent,
)
from .listeners import listens_to
from .messages import EventMessage

if TYPE_CHECKING:
    from .publishing import afire, afire_many, aon_commit, fire, fire_many, on_commit

__version__ = "0.1.0"

__all__ = [
    "BusError",
    "BusUnavailable",
    "ConfigurationError",
    "EventMessage",
    "InvalidEvent",
    "InvalidEventName",
    "InvalidPayload",
    "LightbusError",
    "UnreadableEvent",
    "afire",
    "afire_many",
    "aon_commit",
    "fire",
    "fire_many",
    "listens_to",
    "on_commit",
]


def __getattr__(name: str) -> Any:
    # Models can't be imported before Django's apps are loaded, but this package can.
    if name in ("afire", "afire_many", "aon_commit", "fire", "fire_many", "on_commit"):
        from . import publishing

        return getattr(publishing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
