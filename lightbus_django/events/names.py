"""Event names, and the keys of their streams."""

import re
from functools import lru_cache

from lightbus_django.exceptions import InvalidEventName

MAX_NAME_LENGTH = 200
MAX_STREAM_ID_LENGTH = 41
_EVENT_NAME = re.compile(r"[\w-]+(\.[\w-]+)+")


def is_name(name: object) -> bool:
    """Whether this is a valid event name, `api_name.event`."""
    return isinstance(name, str) and len(name) <= MAX_NAME_LENGTH and _EVENT_NAME.fullmatch(name) is not None


@lru_cache(maxsize=4096)
def split_name(name: str) -> tuple[str, str]:
    """Return the API name and the event of an event name. The event follows the last dot.

    Raises:
        InvalidEventName: `name` is not `api_name.event`.
    """
    if not is_name(name):
        raise InvalidEventName(
            f"{name!r} is not an event name: use an API name, a dot and an event, as in 'competitor_prices.changed', "
            f"with letters, digits, '_' and '-' only, and at most {MAX_NAME_LENGTH} characters"
        )
    api_name, _, event_name = name.rpartition(".")
    return api_name, event_name


def stream_key(name: str, stream_use: str) -> str:
    """Return the key of the stream for an event name, as Lightbus names it. `stream_use` is the setting STREAM_USE."""
    if stream_use == "per_event":
        return f"{name}:stream"
    return f"{split_name(name)[0]}.*:stream"
