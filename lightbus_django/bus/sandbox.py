"""In tests, events go to a list instead of Redis, as Django's mails go to `mail.outbox`."""

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
"""What the test has published, as listeners would get it."""

real_buses: list[str] = []
"""URLs of the buses that the test has asked for."""

is_pytest = False
"""Whether pytest runs, which also imports modules before Django's test environment is set up."""

_numbers = itertools.count()


def keeps_events() -> bool:
    """Whether this is a test that has not asked for a real bus."""
    if real_buses:
        return False
    # Not imported here, for it takes a while. mail.outbox would not do: the locmem backend makes one, too.
    utils = sys.modules.get("django.test.utils")
    return is_pytest or hasattr(getattr(utils, "_TestState", None), "saved_data")


def keep(fields: Fields) -> str:
    """Add an event to the list instead of a stream; return its stream id."""
    stream_id = f"{time.time_ns() // 1_000_000}-{next(_numbers)}"
    fired.append(decode(fields, stream_id))
    return stream_id
