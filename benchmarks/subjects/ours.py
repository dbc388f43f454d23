"""lightbus_django: what runs its listeners and looks after its outbox."""

from collections.abc import Callable
from typing import Any

from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import get_settings
from lightbus_django.listening.consumer import Consumer
from lightbus_django.listening.listener import Listener
from lightbus_django.listening.registry import registry
from lightbus_django.models import OutboxEvent
from lightbus_django.running.housekeeping import Housekeeping
from lightbus_django.running.worker import Worker

from . import Miscounted
from .events import EVENT
from .tally import Tally

GROUP = "benchmarks-measured"
"""The group of the one listener that `consumer` has."""

PATIENCE = 5
"""How many steps in a row may find nothing to do before events are missed."""


def consumer(handler: Callable[..., None], *, events: tuple[str, ...] = (EVENT,), **options: Any) -> Consumer:
    """Return the consumer of a listener, with options of `@listens_to`."""
    settings = get_settings()
    return Consumer(
        Listener(handler=handler, events=events, listener_name="measured", **options),
        service_name=settings.service_name,
        process_name=settings.process_name,
        settings=settings,
        client=_client(),
    )


def step_until(consumer: Consumer, tally: Tally, events: int) -> None:
    """Step until so many events are handled."""
    in_vain = 0
    while tally.count < events and in_vain < PATIENCE:
        in_vain = 0 if consumer.step() else in_vain + 1


def worker(process_name: str | None = None) -> Worker:
    """Return a worker for all listeners that were declared with `@listens_to`."""
    settings = get_settings()
    return Worker(
        registry.select(),
        service_name=settings.service_name,
        process_name=process_name or settings.process_name,
        settings=settings,
    )


def run(worker: Worker) -> None:
    """Run a worker until it is told to stop."""
    if not worker.run():
        raise Miscounted("the worker did not end as it should")


def housekeeping() -> Housekeeping:
    settings = get_settings()
    return Housekeeping([], service_name=settings.service_name, settings=settings, client=_client())


def relay_all(housekeeping: Housekeeping) -> None:
    """Relay until nothing waits in the outbox."""
    waiting = OutboxEvent.objects.exclude(due_at=None)
    in_vain = 0
    while waiting.exists() and in_vain < PATIENCE:
        in_vain = 0 if housekeeping.relay() else in_vain + 1


def _client() -> RedisClient:
    settings = get_settings()
    return RedisClient(settings.url, timeout=settings.redis_timeout + 1, retries=0)
