"""Event names, and the keys of the streams that carry events."""

import re
from functools import lru_cache

from lightbus_django.exceptions import InvalidEventName

MAX_NAME_LENGTH = 200
_EVENT_NAME = re.compile(r"[\w-]+(\.[\w-]+)+")


def is_name(name: object) -> bool:
    """Whether this is an event name, `api_name.event`."""
    return isinstance(name, str) and len(name) <= MAX_NAME_LENGTH and _EVENT_NAME.fullmatch(name) is not None


@lru_cache(maxsize=4096)
def split_name(name: str) -> tuple[str, str]:
    """Return API name and event of an event name; the event is what follows the last dot."""
    if not is_name(name):
        raise InvalidEventName(
            f"{name!r} is not an event name: it takes an API name, a dot and an event, such as "
            f"'competitor_prices.changed', of letters, digits, '_' and '-', {MAX_NAME_LENGTH} at most"
        )
    api_name, _, event_name = name.rpartition(".")
    return api_name, event_name


def stream_key(name: str, stream_use: str) -> str:
    """Return the key of the stream that carries the event `name`, as Lightbus names it."""
    if stream_use == "per_event":
        return f"{name}:stream"
    return f"{split_name(name)[0]}.*:stream"
