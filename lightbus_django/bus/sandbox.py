"""In tests, events go to a list instead of Redis, as Django's emails go to `mail.outbox`."""

import itertools
import sys
import time

from lightbus_django.events.codec import Fields, decode
from lightbus_django.events.message import EventMessage

NO_BUS = (
    "Tests don't reach a real bus unless they ask for it: with @pytest.mark.lightbus, or with "
    "lightbus_django.testing.real_bus()."
)

fired: list[EventMessage] = []
"""The events that the test has fired, as listeners would get them."""

real_buses: list[str] = []
"""URLs of the real buses that the test has asked for."""

is_pytest = False
"""Whether pytest runs. It imports modules before Django's test environment is set up."""

_numbers = itertools.count()


def keeps_events() -> bool:
    """Whether this is a test that has not asked for a real bus."""
    if real_buses:
        return False
    # Not imported here, because that takes a while. mail.outbox proves nothing: the locmem backend creates it, too.
    utils = sys.modules.get("django.test.utils")
    return is_pytest or hasattr(getattr(utils, "_TestState", None), "saved_data")


def keep(fields: Fields) -> str:
    """Append an event to the list instead of a stream; return a stream id for it."""
    stream_id = f"{time.time_ns() // 1_000_000}-{next(_numbers)}"
    fired.append(decode(fields, stream_id))
    return stream_id
