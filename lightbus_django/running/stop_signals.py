"""Signals that stop a worker."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopping_on(*signals: signal.Signals, stop: Callable[[], None]) -> Iterator[None]:
    """During the block, call `stop` on the first of these signals, and end the process at once on the second."""
    received = 0

    def on_signal(signum: int, frame: FrameType | None) -> None:
        # Signals are counted because a parent process may have called `stop` before the first one.
        nonlocal received
        received += 1
        if received > 1:
            os._exit(128 + signum)
        stop()

    before = {signum: signal.signal(signum, on_signal) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
