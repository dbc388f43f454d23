"""The cast of `manage.py demo`: its database, its workers, the bus, and what the business tables say."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, NamedTuple, Self
from urllib.parse import quote

import redis
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.db.models import Count
from django.utils import timezone

from example_project.prices.models import CompetitorPrice, PriceAlert
from lightbus_django import on_commit
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent

MANAGE = settings.BASE_DIR / "manage.py"
DATABASE = settings.BASE_DIR / "demo.sqlite3"

SERVICE = "price-monitor"
STREAM = "competitor_prices.*:stream"

TABLES = {"update_db": CompetitorPrice, "send_price_alerts": PriceAlert}
"""The business table in which each listener writes one row for every price change."""

GROUPS = [f"{SERVICE}-{listener_name}".replace("_", "-") for listener_name in TABLES]


# --- The database -----------------------------------------------------------------------------


def prepare_database() -> None:
    """Make a new demo.sqlite3 the database of this process and its children, or empty that of DATABASE_URL."""
    if "DATABASE_URL" not in os.environ:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{DATABASE}{suffix}").unlink(missing_ok=True)
        connection.settings_dict["NAME"] = DATABASE
        os.environ["DATABASE_URL"] = sqlite_url(DATABASE)
    call_command("migrate", verbosity=0)
    for model in (*TABLES.values(), ProcessedEvent, FailedEvent, OutboxEvent):
        model.objects.all().delete()


def sqlite_url(path: str | Path) -> str:
    """Return the DATABASE_URL of a database file."""
    return f"sqlite:///{quote(str(path))}"


def create_superuser(name: str, password: str) -> None:
    """Let somebody into the admin."""
    get_user_model().objects.update_or_create(
        username=name, defaults={"password": make_password(password), "is_staff": True, "is_superuser": True}
    )


class Tally(NamedTuple):
    """What a business table says: how many rows it has, and how many price changes have a row."""

    rows: int
    changes: int


def tallies() -> dict[str, Tally]:
    """Count what each listener has done."""
    counts = {"rows": Count("pk"), "changes": Count("change", distinct=True)}
    return {name: Tally(**table.objects.aggregate(**counts)) for name, table in TABLES.items()}


# --- The crawler ------------------------------------------------------------------------------


def crawl(changes: int) -> Iterator[int]:
    """Fire price changes, each in a transaction of its own; yield the number of each."""
    for change in range(1, changes + 1):
        with transaction.atomic():
            on_commit(
                "competitor_prices.changed",
                sku=f"A-{change % 100}",
                price=Decimal(999 + change % 5000) / 100,
                change=change,
            )
        yield change


def forget_publishing(count: int) -> int:
    """Leave the outbox as a crash between publishing and marking would; return how many events that concerns."""
    latest = OutboxEvent.objects.filter(due_at=None).order_by("-pk").values_list("pk", flat=True)[:count]
    return OutboxEvent.objects.filter(pk__in=list(latest)).update(due_at=timezone.now(), published_at=None)


def count_waiting() -> int:
    """Count the events in the outbox that are not published."""
    return OutboxEvent.objects.filter(due_at__isnull=False).count()


# --- The bus ----------------------------------------------------------------------------------


class Bus:
    """What Redis says about the consumer groups of our listeners."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url, decode_responses=True)

    def silence(self, process_name: str) -> float:
        """Return for how many seconds a process has not asked for events, in the group where that is longest."""
        try:
            times = [row["idle"] for group in GROUPS for row in self._consumers(group) if row["name"] == process_name]
        except redis.ResponseError:  # no stream or no group so far
            return math.inf
        return max(times) / 1000 if len(times) == len(GROUPS) else math.inf

    def in_hand(self, process_name: str) -> int:
        """Count what was delivered to a process and not acknowledged."""
        rows = (row for group in GROUPS for row in self._consumers(group))
        return sum(row["pending"] for row in rows if row["name"] == process_name)

    def unfinished(self) -> int:
        """Count what is still to be delivered or to be acknowledged."""
        groups = self.client.xinfo_groups(STREAM)
        return sum(row["lag"] + row["pending"] for row in groups if row["name"] in GROUPS)

    def published(self) -> int:
        """Count the entries that were ever added to the stream."""
        return int(self.client.xinfo_stream(STREAM)["entries-added"])

    def _consumers(self, group: str) -> list[dict[str, Any]]:
        return self.client.xinfo_consumers(STREAM, group)


# --- The workers ------------------------------------------------------------------------------


class Worker:
    """A process that runs the listeners: `manage.py lightbus_listen`. It does not outlive its `with` block."""

    def __init__(self, name: str, url: str, log: IO[bytes]) -> None:
        self.name = name
        self.url = url
        self.log = log

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, MANAGE, "lightbus_listen", f"--service-name={SERVICE}", f"--process-name={self.name}"],
            env={**os.environ, "LIGHTBUS_URL": self.url},
            stdout=self.log,
            stderr=self.log,
        )
        self.started_at = time.monotonic()

    def listens(self, bus: Bus) -> bool:
        """Whether the process is up by now."""
        return bus.silence(self.name) < time.monotonic() - self.started_at

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> int:
        """Ask the process to end; return its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.returncode

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def kill_when_busy(self, bus: Bus) -> int:
        """Kill the process while it has deliveries in hand, and start it again; return how many it had."""
        for tries_left in reversed(range(1000)):
            self._freeze()  # lest it finishes them between our look and the kill
            if bus.in_hand(self.name) >= tries_left / 100:  # ten at first; as time goes by, fewer will do
                break
            self.process.send_signal(signal.SIGCONT)
            time.sleep(0.002)
        self.kill()
        in_hand = bus.in_hand(self.name)
        self.start()
        return in_hand

    def _freeze(self) -> None:
        if self.is_running:
            self.process.send_signal(signal.SIGSTOP)
            _, status = os.waitpid(self.process.pid, os.WUNTRACED)
            if os.WIFSTOPPED(status):
                return
        raise CommandError(f"{self.name} has ended by itself.")
