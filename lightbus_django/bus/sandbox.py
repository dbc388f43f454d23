"""In tests, events are kept in a list instead of Redis, like emails in `django.core.mail.outbox`."""

import itertools
import sys
import time

from lightbus_django.events.codec import Fields, decode
from lightbus_django.events.message import EventMessage

NO_BUS = (
    "Tests can't reach a real bus by default. Use @pytest.mark.lightbus or lightbus_django.testing.real_bus() in tests "
    "that need one."
)

fired: list[EventMessage] = []
"""The events that the test has fired, as listeners would get them."""

real_buses: list[str] = []
"""URLs of the real buses in use."""

is_pytest = False
"""Whether pytest is running, which imports test modules before it sets up Django's test environment."""

_numbers = itertools.count()


def keeps_events() -> bool:
    """Return whether this is a test without a real bus."""
    if real_buses:
        return False
    # Not imported here, because that is slow. mail.outbox tells nothing: the locmem backend also creates one.
    utils = sys.modules.get("django.test.utils")
    return is_pytest or hasattr(getattr(utils, "_TestState", None), "saved_data")


def keep(fields: Fields) -> str:
    """Add an event to `fired`; return a stream id."""
    stream_id = f"{time.time_ns() // 1_000_000}-{next(_numbers)}"
    fired.append(decode(fields, stream_id))
    return stream_id
