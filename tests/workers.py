"""A worker in a thread of the test's process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightbus_django.conf import get_settings
from lightbus_django.listening.registry import registry
from lightbus_django.running.worker import Worker

from .waiting import eventually

STOP_TIMEOUT = 40
"""Seconds within which a worker ends that is told to."""


@contextmanager
def running_worker(
    service_name: str = "price-monitor", process_name: str = "worker", *, is_joined: bool = False, **options: Any
) -> Iterator[Worker]:
    """Run a worker while in this block.

    Args:
        is_joined: wait until it is a member of all of its groups.
        options: further arguments of `Worker`.
    """
    names = {"service_name": service_name, "process_name": process_name}
    worker = Worker(registry, **names, settings=get_settings(), **options)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        if is_joined:
            eventually(lambda: all(consumer.has_joined for consumer in worker.consumers))
        yield worker
    finally:
        worker.stop()
        thread.join(STOP_TIMEOUT)
        assert not thread.is_alive()
