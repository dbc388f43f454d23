"""A producer: transactions that write rows and fire events, some of which come to a bad end.

`python -m tests.chaos.producer NAME --events N --rate R --until T --start K`
"""

import argparse
import os
import random
import signal
import time
from contextlib import suppress

import django
from django.conf import settings
from django.db import DatabaseError, connections, transaction
from django.db.models import Max

FATES = {
    "commits": 938,
    "rolls back": 50,
    "dies in its transaction": 5,
    "dies between commit and publishing": 5,
    "lingers in its transaction": 1,
    "lingers between commit and publishing": 1,
}
"""What becomes of a transaction, and how many of 1,000."""

LINGER = 12.0
"""Seconds that a transaction, or what comes after it, takes at most: longer than the outbox's GRACE."""


class RolledBack(Exception):
    pass


class Producer:
    def __init__(self, name: str, events: int, rate: float, until: float, start: int) -> None:
        self.name = name
        self.events = events
        self.rate = rate
        self.until = until
        self.random = random.Random(f"{settings.CHAOS_SEED} {name} {start}")

    def run(self) -> None:
        """Go on where the rows say that we are, until there are enough or it is time."""
        while time.time() < self.until:
            try:
                rows = Sent.objects.filter(producer=self.name)
                left = self.events - rows.count()
                if left <= 0:
                    return
                number = rows.aggregate(last=Max("number", default=0))["last"]
                # If a savepoint cannot be rolled back, Django rolls back all without a word: then count again.
                while left > 0 and time.time() < self.until:
                    number += 1
                    left -= self.transact(number, left)
                    if settings.CHAOS_CLUSTER and number % 5 == 0:
                        self.fire_alone()
                    time.sleep(self.random.expovariate(self.rate / 2.5))
            except DatabaseError as error:
                # Whether the last transaction was committed is not known here; the rows tell.
                print("meets a database error:", str(error).partition("\n")[0], flush=True)
                connections.close_all()
                time.sleep(0.1)

    def transact(self, number: int, left: int) -> int:
        """Make one transaction of 1 to 4 events; return how many it committed."""
        fate = self.random.choices([*FATES], [*FATES.values()])[0]
        parts = min(self.random.randint(1, 4), left)
        undone = self.random.random() < 0.1
        linger = self.random.uniform(0, LINGER)
        if fate != "commits":
            print(fate, flush=True)
        try:
            with transaction.atomic():
                # Hooks run in order, so these are before the one that publishes.
                if fate == "dies between commit and publishing":
                    transaction.on_commit(die)
                if fate == "lingers between commit and publishing":
                    transaction.on_commit(lambda: time.sleep(linger))
                for part in range(parts):
                    self.send(number, part)
                if undone:
                    with suppress(RolledBack), transaction.atomic():
                        self.send(number, parts)
                        raise RolledBack
                if fate == "dies in its transaction":
                    die()
                if fate == "lingers in its transaction":
                    time.sleep(linger)
                if fate == "rolls back":
                    raise RolledBack
        except RolledBack:
            return 0
        return parts

    def send(self, number: int, part: int) -> None:
        row = Sent.objects.create(producer=self.name, number=number, part=part)
        name = HAPPENED[(number + part) % len(HAPPENED)]  # those of one transaction are of several APIs
        payload = {"sent": row.pk, "producer": self.name, "number": number, "part": part}
        if settings.CHAOS_SABOTAGE == "outbox":  # as those do it who have none
            with suppress(BusUnavailable):
                fire(name, **payload)
        else:
            on_commit(name, **payload)

    def fire_alone(self) -> None:
        """Fire an event without an outbox, and remember it if Redis has acknowledged it."""
        sent = self.random.getrandbits(62)
        with suppress(BusUnavailable):
            fire(ALONE, sent=sent)
            Alone.objects.create(id=sent)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    django.setup()
    from lightbus_django import fire, on_commit
    from lightbus_django.exceptions import BusUnavailable

    from .listeners import ALONE, HAPPENED
    from .models import Alone, Sent

    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--until", type=float, required=True)
    parser.add_argument("--start", type=int, required=True)
    Producer(**vars(parser.parse_args())).run()
