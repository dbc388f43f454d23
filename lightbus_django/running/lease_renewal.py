"""A thread that renews leases, so that no slow handler or database lets them expire."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightbus_django.bus.consumer_group import ALIVE_INTERVAL
from lightbus_django.exceptions import BusError
from lightbus_django.listening.consumer import Consumer

logger = logging.getLogger("lightbus_django")


@contextmanager
def renewing_leases(consumers: Sequence[Consumer], acknowledgement_timeout: float) -> Iterator[threading.Thread]:
    """Renew the leases of consumers, and show Redis that they are alive, during the block; yield the thread.

    Args:
        acknowledgement_timeout: seconds after which a lease expires.
    """
    done = threading.Event()

    def renew() -> None:
        while not done.wait(min(acknowledgement_timeout / 4, ALIVE_INTERVAL)):
            for consumer in consumers:
                if done.is_set():
                    break  # while Redis hangs, each renewal takes a timeout
                try:
                    consumer.renew()
                except BusError as error:
                    logger.warning("%s: can't renew leases, retrying: %s", consumer.group, error)
                except Exception:
                    logger.exception("%s: unexpected error; retrying", consumer.group)

    thread = threading.Thread(target=renew, name="leases", daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        done.set()
        thread.join()
