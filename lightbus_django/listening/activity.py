"""What the thread of a listener is doing, for the thread that renews its leases to see."""

import time
from typing import NamedTuple

from .delivery import Delivery

HANDLER = "running the handler"
CONNECTING = "connecting to the database"
READING_KEY = "reading an idempotency key"
INSERTING_KEY = "inserting an idempotency key"
COMMITTING = "ending a transaction"
RECORDING = "recording a failure"
CONFIRMING = "making commits durable"
CLAIMING = "looking for a retry"
SAVING_OFFSETS = "loading or saving the offsets of its group"


class Doing(NamedTuple):
    """One thing that takes a while: what it is, when it began on the monotonic clock, and for which events."""

    what: str
    since: float
    deliveries: tuple[Delivery, ...]


class Activity:
    """The thread replaces `current` as a whole and never changes it, so that others may read it at any time."""

    def __init__(self) -> None:
        self.current: Doing | None = None

    def start(self, what: str, *deliveries: Delivery) -> None:
        """Begin to do something, for these events; what was done before is over."""
        self.current = Doing(what, time.monotonic(), deliveries)

    def end(self) -> None:
        """Do nothing that takes a while."""
        self.current = None
