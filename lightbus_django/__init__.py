"""Events between Django services: fired once committed, handled once, over Redis Streams."""

from typing import TYPE_CHECKING, Any

from .events.message import EventMessage
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
from .listening.registry import listens_to

if TYPE_CHECKING:
    from .firing.api import afire, afire_many, aon_commit, aon_commit_many, fire, fire_many, on_commit, on_commit_many

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
    "aon_commit_many",
    "fire",
    "fire_many",
    "listens_to",
    "on_commit",
    "on_commit_many",
]

_FIRING = {
    "afire",
    "afire_many",
    "aon_commit",
    "aon_commit_many",
    "fire",
    "fire_many",
    "on_commit",
    "on_commit_many",
}


def __getattr__(name: str) -> Any:
    # Models can't be imported before Django's apps are loaded, but this package can.
    if name in _FIRING:
        from .firing import api as publishing

        return getattr(publishing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
