"""One listener of each kind. Each writes one effect for each event that it handles."""

import time
import uuid
import zlib
from collections.abc import Callable, Collection
from typing import Any

from django.conf import settings
from django.db import connection, connections

from lightbus_django import EventMessage, listens_to, on_commit

from .models import Effect

HAPPENED = ["chaos.happened"]
FOLLOWED = "echo.followed"
ALONE = "loose.fired"
"""Fired with `fire`, and only in a cluster."""

LISTENERS = {
    "plain": "default",
    "follow": "default",
    "followed": "default",
    "flaky": "default",
    "slow": "default",
    "awaited": "default",
    "committing": "default",
    "closing": "default",
    "elsewhere": "other",
}
"""All of them, and the database in which their effects are."""

if settings.CHAOS_CLUSTER:
    HAPPENED += ["mail.happened", "stock.happened"]  # on three nodes, until slots move
    LISTENERS |= {"follow": "echo", "slow": "echo"}  # listeners of the service `echo`
    for name in ("awaited", "committing", "closing"):  # what they do is no matter of the cluster
        del LISTENERS[name]

RUN = str(uuid.uuid4())

# Without keys when the harness is to show that it counts doubles.
common: dict[str, Any] = {"start": "beginning", "idempotent": settings.CHAOS_SABOTAGE != "keys"}


class OnPurpose(Exception):
    """Raised by a handler that is to fail."""


def listens(events: str | Collection[str], **options: Any) -> Callable[[Any], Any]:
    """Register the handler if it is a listener of this process's service."""

    def register(handler: Any) -> Any:
        alias = LISTENERS.get(handler.__name__)
        if alias and (alias == "echo") == (settings.LIGHTBUS["SERVICE_NAME"] == "echo"):
            listens_to(events, **common, **options)(handler)
        return handler

    return register


def drawn(listener: str, sent: int, one_in: int) -> bool:
    """Whether the seed chose this event for this listener: one in so many."""
    return zlib.crc32(f"{settings.CHAOS_SEED} {listener} {sent}".encode()) % one_in == 0


def effect(listener: str, event: EventMessage, sent: int) -> Effect:
    return Effect(
        listener=listener,
        api_name=event.api_name,
        sent=sent,
        attempt=event.attempt,
        stream_id=event.stream_id,
        run=RUN,
    )


@listens(HAPPENED)
def plain(event: EventMessage, sent: int) -> None:
    effect("plain", event, sent).save()


@listens(HAPPENED)
def follow(event: EventMessage, sent: int) -> None:
    """Fires an event of its own, sometimes just before it fails."""
    effect("follow", event, sent).save()
    on_commit(FOLLOWED, sent=sent)
    if event.attempt == 1 and drawn("follow", sent, 100):
        raise OnPurpose


@listens(FOLLOWED)
def followed(event: EventMessage, sent: int) -> None:
    effect("followed", event, sent).save()


@listens(HAPPENED)
def flaky(event: EventMessage, sent: int) -> None:
    """Fails once, or twice, after it has written."""
    effect("flaky", event, sent).save()
    if (event.attempt == 1 and drawn("flaky", sent, 25)) or (event.attempt == 2 and drawn("flaky", sent, 50)):
        raise OnPurpose


@listens(HAPPENED)
def slow(event: EventMessage, sent: int) -> None:
    """Takes longer than the acknowledgement timeout now and then, so that another process takes its event."""
    effect("slow", event, sent).save()
    if event.attempt == 1 and drawn("slow", sent, 500):
        time.sleep(1.5 * settings.LIGHTBUS["ACKNOWLEDGEMENT_TIMEOUT"])


@listens(HAPPENED)
async def awaited(event: EventMessage, sent: int) -> None:
    await effect("awaited", event, sent).asave()


@listens(HAPPENED)
def committing(event: EventMessage, sent: int) -> None:
    """Commits its transaction itself now and then."""
    effect("committing", event, sent).save()
    if drawn("committing", sent, 50):
        with connection.cursor() as cursor:
            cursor.execute("COMMIT")


@listens(HAPPENED)
def closing(event: EventMessage, sent: int) -> None:
    """Closes its connection now and then: once in each process, or whenever it gets the event for the first time."""
    effect("closing", event, sent).save()
    if (drawn("closing", sent, 50) and sent not in closed) or (event.attempt == 1 and drawn("always", sent, 500)):
        closed.add(sent)
        connections.close_all()


closed: set[int] = set()


@listens(HAPPENED, using="other")
def elsewhere(event: EventMessage, sent: int) -> None:
    """Has its inbox in another database, and fails there once in a while."""
    effect("elsewhere", event, sent).save(using="other")
    if event.attempt == 1 and drawn("elsewhere", sent, 100):
        raise OnPurpose


if settings.CHAOS_CLUSTER and settings.LIGHTBUS["SERVICE_NAME"] == "chaos":

    @listens_to(ALONE, idempotent=False, start="beginning")
    def counted(event: EventMessage, sent: int) -> None:
        """What was fired with `fire` may be lost: this is for counting that."""
        effect("counted", event, sent).save()
