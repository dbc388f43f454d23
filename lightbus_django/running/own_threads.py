"""A thread for each listener, which waits for its events in Redis."""

import logging
import threading
from collections.abc import Mapping

from django.db import connections

from lightbus_django.exceptions import LightbusError
from lightbus_django.listening.consumer import Consumer

from .health import Health
from .loop import run_until_stopped

logger = logging.getLogger("lightbus_django")


def own_threads(healths: Mapping[Consumer, Health], stopping: threading.Event) -> list[threading.Thread]:
    """Return a thread for each consumer, to be started; it stops the consumer when `stopping` is set, and ends."""

    def run(consumer: Consumer) -> None:
        def step() -> Exception | None:
            consumer.step()
            return consumer.problem

        try:
            run_until_stopped(step, healths[consumer], stopping)
            stop_consumer(consumer)
        finally:
            connections.close_all()

    return [threading.Thread(target=run, args=[each], name=each.group, daemon=True) for each in healths]


def stop_consumer(consumer: Consumer) -> None:
    """Stop a consumer; if its events can't be released, log that."""
    try:
        consumer.stop()
    except LightbusError as error:
        logger.warning(
            "%s: events in hand could not be released; other processes take them over after "
            "ACKNOWLEDGEMENT_TIMEOUT: %s",
            consumer.group,
            error,
        )
