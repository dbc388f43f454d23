"""One run: events through producers, Redis and workers, in a storm; then calm, and the verdict."""

import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from django.core.management import call_command
from django.db import DatabaseError, connections

from lightbus_django.conf import get_settings
from lightbus_django.models import FailedEvent, OutboxEvent
from tests.own_postgresql import OwnPostgreSQL
from tests.proxies import Proxy

from .cluster import ChaosCluster
from .models import Sent
from .processes import ROOT, Producer, Worker
from .producer import FATES
from .servers import Redis, Unavailable
from .storm import Storm
from .verdict import DATABASES, FIRING, Verdict, count_effects, judge
from .witness import AWAY, GROUPS, STREAMS, Witness

Result = TypeVar("Result")

PATIENCE = 90.0
"""Seconds without any progress after which we give up."""


@dataclass
class Options:
    seed: str
    events: int
    minutes: float
    rate: float
    workers: int
    producers: int
    pause: float


@dataclass
class State:
    """How far it is, for those who watch."""

    phase: str
    sent: int
    effects: int
    mischief: Counter[str]


@dataclass
class Outcome:
    verdict: Verdict
    seconds: float
    drained_in: float
    trimmed: int
    restored: int
    """Effects of events that a failover had lost, after they were published again."""
    mischief: Counter[str]
    fates: Counter[str]
    troubles: list[str]

    @property
    def is_well(self) -> bool:
        return not self.troubles and not any(self.verdict.wrong.values())


class Harness:
    """Runs in the Django of `tests.chaos.settings`, with the environment that all its processes get."""

    def __init__(
        self,
        options: Options,
        server: Redis | ChaosCluster,
        postgresql: OwnPostgreSQL | None,
        proxy: Proxy,
        group: int,
        logs: Path,
        show: Callable[[State], None],
    ) -> None:
        self.options = options
        self.redis = server
        self.show = show
        self.troubles: list[str] = []
        common = {"group": group, "logs": logs, "environment": environment_of("chaos")}
        sharing = ["--threads=1"] if isinstance(server, ChaosCluster) else []
        # Half of them come back under their names, to what they left; the others never do.
        self.workers = [
            Worker(
                f"{service}-worker-{number}",
                *([f"worker-{number}"] if number % 2 else ["{random8}", *sharing]),
                **{**common, "environment": environment_of(service, proxy)},
            )
            for service in FIRING
            for number in range(1, options.workers // len(FIRING) + 1)
        ]
        until = time.time() + 60 * options.minutes
        shares = [options.events // options.producers] * options.producers
        shares[0] += options.events % options.producers
        self.producers = [
            Producer(f"producer-{number}", events=share, rate=options.rate / options.producers, until=until, **common)
            for number, share in enumerate(shares, start=1)
        ]
        self.storm = Storm(
            options.seed,
            redis=server,
            workers=self.workers,
            producers=self.producers,
            postgresql=postgresql,
            proxy=proxy,
            settings=get_settings(),
            pause=options.pause,
            log=logs / "mischief.log",
        )
        if isinstance(server, ChaosCluster):
            server.keys = STREAMS
        self.client = server.client()
        self.witness = Witness(self.client)
        self.logs = logs
        self.shown_at = 0.0

    def run(self) -> Outcome:
        for alias in DATABASES:
            call_command("migrate", run_syncdb=True, verbosity=0, database=alias)
        self.redis.start()
        while not self.witness.join():
            if not self.redis.runs:
                raise Unavailable(f"no Redis: {self.redis.log.read_text()}")
            time.sleep(0.05)
        for child in (*self.workers, *self.producers):
            child.start()
        self.wait(lambda: all(worker.is_ready for worker in self.workers), "starting")
        began = time.monotonic()
        # A calm moment first, to compare with.
        self.wait(lambda: time.monotonic() - began > 2, "calm before")
        while not all(producer.is_done for producer in self.producers):
            self.storm.step(time.monotonic())
            self.look("storm")
        self.wait(lambda: not self.storm.step(time.monotonic(), more=False), "storm ends")
        calm = time.monotonic()
        self.drain()
        ended = time.monotonic()
        restored = self.republish(ended - began + 60) if isinstance(self.redis, ChaosCluster) else 0
        self.stop_workers()
        trimmed = sum(row["entries-added"] - row["length"] for row in map(self.client.xinfo_stream, STREAMS))
        self.witness.read()
        stops = sorted([*self.storm.disturbances, *(stop for worker in self.workers for stop in worker.stops)])
        verdict = judge([*self.witness.seen.values()], stops, self.storm.outages)
        if verdict.sent != self.options.events and math.isinf(self.options.minutes):
            self.troubles.append(f"{verdict.sent} events were committed, not {self.options.events}")
        if len(self.witness.seen) < verdict.sent:
            self.troubles.append(f"of {verdict.sent} events only {len(self.witness.seen)} were seen in the stream")
        return Outcome(
            verdict=verdict,
            seconds=ended - began,
            drained_in=ended - calm,
            trimmed=trimmed,
            restored=restored,
            mischief=self.storm.counts,
            fates=self.count_fates(),
            troubles=[*self.troubles, *self.storm.troubles],
        )

    def look(self, phase: str) -> None:
        """Look after everything once, and pause for a moment."""
        if not self.redis.runs and not self.storm.is_at(self.redis):
            self.troubles.append(f"{self.redis.log.name}: ended by itself with exit code {self.redis.exit_code}")
            self.redis.start()
        for worker in self.workers:
            if not worker.runs and not self.storm.is_at(worker):
                self.troubles.append(f"{worker.log.name}: ended by itself with exit code {worker.exit_code}")
                worker.start()
        for producer in self.producers:
            if not producer.runs and not producer.is_done and not self.storm.is_at(producer):
                if producer.exit_code != -9:  # its own doing
                    self.troubles.append(f"{producer.log.name}: ended with exit code {producer.exit_code}")
                producer.start()
        if time.monotonic() - self.shown_at > 1:
            self.witness.read()
            self.show(State(phase, patiently(Sent.objects.count), patiently(count_effects), self.storm.counts))
            self.shown_at = time.monotonic()
        time.sleep(0.02)

    def wait(self, condition: Callable[[], bool], phase: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.look(phase)
            if time.monotonic() > deadline:
                self.troubles.append(f"{phase}: not over after {PATIENCE:.0f} s")
                return

    # --- The end ------------------------------------------------------------------------------

    def drain(self) -> None:
        """Wait until nothing is left to do, or nothing goes on."""
        before, since = None, time.monotonic()
        while any((left := patiently(self.left)).values()):
            self.look("calm after")
            now = {**left, "effects": patiently(count_effects)}
            if now != before:
                before, since = now, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                self.troubles.append(f"nothing goes on for {PATIENCE:.0f} s, and there is left: {_some(left)}")
                return
            time.sleep(0.5)  # counting takes a while if there are many

    def left(self) -> dict[str, int]:
        left = {
            "in the outbox": sum(
                OutboxEvent.objects.using(alias).filter(due_at__isnull=False).count() for alias in FIRING.values()
            ),
            "to be retried": sum(
                FailedEvent.objects.using(alias).filter(next_attempt_at__isnull=False).count() for alias in DATABASES
            ),
        }
        missing = GROUPS
        try:
            for stream in STREAMS:
                last_id = self.client.xinfo_stream(stream)["last-generated-id"]
                for group in self.client.xinfo_groups(stream):
                    missing -= 1
                    name = group["name"].decode()
                    left[f"pending for {name}"] = group["pending"]
                    left[f"undelivered to {name}"] = int(group["last-delivered-id"] != last_id)
        except AWAY as error:
            return {**left, f"not known: {error}": 1}
        return {**left, "groups missing": missing}

    def republish(self, seconds: float) -> int:
        """Let each service publish its events again, as after a failover; return how many effects that restored."""
        before = count_effects()
        self.witness.counts_copies = False
        for service in FIRING:
            command = [sys.executable, "manage.py", "lightbus_republish", f"--since={seconds:.0f}s"]
            done = subprocess.run(
                command, cwd=ROOT, env=environment_of(service), capture_output=True, text=True, check=False
            )
            (self.logs / f"republish-{service}.log").write_text(done.stdout + done.stderr)
            if done.returncode:
                self.troubles.append(f"lightbus_republish of {service}: {done.stderr}")
        self.drain()
        return count_effects() - before

    def stop_workers(self) -> None:
        stops = [worker.stop() for worker in self.workers]
        while stops:
            stops = [stop for stop in stops if next(stop, None) is not None]
            time.sleep(0.05)
        self.troubles += [
            f"{worker.log.name}: stopped with exit code {worker.exit_code} in the end, not 0"
            for worker in self.workers
            if worker.exit_code != 0
        ]

    def count_fates(self) -> Counter[str]:
        lines = (line for log in self.logs.glob("producer-*.log") for line in log.read_text().splitlines())
        return Counter(line for line in lines if line in FATES)


def environment_of(service: str, proxy: Proxy | None = None) -> dict[str, str]:
    """Return what the processes of a service get: its own databases only, the first one behind the proxy."""
    own = {"CHAOS_SERVICE": service, "ECHO_DATABASE_URL": ""}
    if service == "echo":
        own |= {"DATABASE_URL": os.environ["ECHO_DATABASE_URL"], "OTHER_DATABASE_URL": ""}
    elif proxy is not None:
        own["DATABASE_URL"] = proxy.url
    return {**os.environ, **own}


def patiently(query: Callable[[], Result]) -> Result:
    """Ask the database, again where it is away."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return query()
        except DatabaseError:
            if time.monotonic() > deadline:
                raise
            connections.close_all()
            time.sleep(0.1)


def _some(left: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in left.items() if count)
