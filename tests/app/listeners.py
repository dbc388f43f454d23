"""Listeners for the tests that run real processes. They are in every process of tests.settings."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from lightbus_django import EventMessage, listens_to

from .models import Effect


@listens_to("shop.order_placed", listener_name="book", start="beginning")
def book(event: EventMessage, number: int, **kwargs: Any) -> None:
    Effect.objects.create(name="book", number=number)


@listens_to("shop.parcel_delivered", listener_name="fragile", start="beginning")
def fragile(
    event: EventMessage,
    number: int,
    dies: bool = False,
    fails: bool = False,
    sleep: float = 0,
    once: str = "",
    reads: bool = False,
    **kwargs: Any,
) -> None:
    """Does what the event says: sleep, read, die, or fail. With `once`, a path, only the first time."""
    Effect.objects.create(name="fragile", number=number)
    if once and Path(once).exists():
        return
    if once:
        Path(once).touch()
    time.sleep(sleep)
    if reads:
        Effect.objects.count()
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    if fails:
        raise ValueError(f"number {number} fails, as it was told to")
