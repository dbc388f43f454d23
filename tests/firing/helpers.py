"""Helpers for tests of the outbox and the relay."""

import json
import threading
from contextlib import suppress

from django.db import OperationalError, connections
from django.utils import timezone

from lightbus_django.firing.publisher import GRACE
from lightbus_django.models import OutboxEvent

KEY = "shop.*:stream"
NOWHERE = "redis://:secret@127.0.0.1:1/0"


def numbers(r, key=KEY):
    """Return the `number` of each event in a stream."""
    return [json.loads(fields[":number"]) for _, fields in r.xrange(key)]


def waiting():
    """Return how many events of the outbox are not published."""
    return OutboxEvent.objects.unpublished().count()


def make_due():
    """Make all unpublished events due, as if they had been left behind."""
    OutboxEvent.objects.unpublished().update(due_at=timezone.now() - GRACE)


def relay_in_threads(housekeeping):
    """Relay in several threads at once, until everything is published."""

    def work():
        keeper = housekeeping()
        try:
            while waiting():
                with suppress(OperationalError):  # another thread may have SQLite locked
                    keeper.relay()
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
