"""What a listener's thread is doing, for the thread that renews its leases to see."""

import time

import msgspec

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


class Doing(msgspec.Struct, frozen=True, eq=False):
    """One step: what it is, when it began on the monotonic clock, and the events concerned."""

    what: str
    since: float
    deliveries: tuple[Delivery, ...]


class Activity:
    """The step at hand. `current` is replaced and never changed, so other threads may read it at any time."""

    def __init__(self) -> None:
        self.current: Doing | None = None

    @property
    def seconds(self) -> float:
        """How long the step at hand has taken so far."""
        return time.monotonic() - self.current.since if self.current else 0.0

    def start(self, what: str, *deliveries: Delivery) -> None:
        """Begin a step for these events, which ends the one before."""
        self.current = Doing(what, time.monotonic(), deliveries)

    def go_on(self, what: str) -> None:
        """Begin another step for the same events."""
        self.start(what, *(self.current.deliveries if self.current else ()))

    def end(self) -> None:
        """End the step."""
        self.current = None
