"""A thread that writes the heartbeat of the process, and the figures of its listeners."""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import lightbus_django
from lightbus_django.bus import figures, heartbeats
from lightbus_django.bus.client import RedisClient
from lightbus_django.bus.heartbeats import Heartbeat, ListenerSign, ProcessSign
from lightbus_django.conf import Settings
from lightbus_django.exceptions import BusError
from lightbus_django.listening.consumer import Consumer

from .health import Health
from .jobs import Jobs

logger = logging.getLogger("lightbus_django")

MAX_FIRES = 200
"""Maximum number of event names in a heartbeat that its service fires."""

REMIND_INTERVAL = 60.0
"""Seconds between two errors in the log about another process under the same name."""


class Pulse:
    """Writes the heartbeats of one process.

    Whatever Redis replies, the process goes on: this is for people to see.
    """

    def __init__(
        self,
        healths: Mapping[Consumer, Health],
        all_jobs: Callable[[], Sequence[Jobs]],
        fired_events: Callable[[], Iterable[str]],
        *,
        service_name: str,
        process_name: str,
        settings: Settings,
        client: RedisClient,
    ) -> None:
        """Make the pulse of a process that starts now.

        Args:
            healths: the consumers, each with its health.
            all_jobs: returns the periodic jobs.
            fired_events: returns the names of events that the service has fired lately.
        """
        self._healths = healths
        self._all_jobs = all_jobs
        self._fired_events = fired_events
        self._service_name = service_name
        self._process_name = process_name
        self._settings = settings
        self._client = client
        self._start = secrets.token_hex(8)
        self._started = time.monotonic()
        self._health = Health("heartbeat", client)
        self._remind_at = 0.0

    def beat(self) -> None:
        """Write a heartbeat, and add to the figures what happened since the last one."""
        now = time.monotonic()
        try:
            self._report_others(heartbeats.beat(self._client, self._start, self._sign(now)), now)
            self._add_figures()
        except BusError as error:
            self._health.failed(error)
        else:
            self._health.succeeded()

    def end(self) -> None:
        """Remove the heartbeat, because the process ends."""
        with suppress(BusError):
            heartbeats.end(self._client, self._start, self._sign(time.monotonic()))
        with suppress(BusError):
            self._add_figures()

    def _add_figures(self) -> None:
        counts = {consumer: consumer.inbox.tally.drain() for consumer in self._healths}
        counts = {consumer: counter for consumer, counter in counts.items() if counter}
        if not counts:
            return
        try:
            by_group = {consumer.group: counter for consumer, counter in counts.items()}
            process = self._service_name, self._process_name
            figures.add(self._client, by_group, datetime.now(UTC), process=process)
        except BusError:
            for consumer, counter in counts.items():
                consumer.inbox.tally.put_back(counter)
            raise

    def _report_others(self, others: Sequence[Heartbeat], now: float) -> None:
        if not others or now < self._remind_at:
            return
        self._remind_at = now + REMIND_INTERVAL
        for other in others:
            logger.error(
                "two processes run under the name %s of service %s: this one, and one on host %s with pid %d; they "
                "handle events twice. Give each process a PROCESS_NAME of its own, or stop one",
                self._process_name,
                self._service_name,
                other.process.host,
                other.process.pid,
            )

    def _sign(self, now: float) -> ProcessSign:
        return ProcessSign(
            service_name=self._service_name,
            process_name=self._process_name,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=lightbus_django.__version__,
            code_version=self._settings.code_version,
            started=round(now - self._started, 3),
            timeout=self._settings.acknowledgement_timeout,
            listeners=[_listener_sign(consumer, health, now) for consumer, health in self._healths.items()],
            fires=sorted(self._fired_events())[:MAX_FIRES],
            stuck_jobs=[problem for jobs in self._all_jobs() for problem in jobs.describe_problems()],
        )


def _listener_sign(consumer: Consumer, health: Health, now: float) -> ListenerSign:
    doing = consumer.inbox.activity.current
    return ListenerSign(
        group=consumer.group,
        listener=consumer.listener.listener_name,
        events=sorted(consumer.listener.events),
        state=consumer.state.value,
        stepped=_ago(consumer.stepped_at, now),
        read=_ago(consumer.reader.read_at, now),
        settled=_ago(consumer.processor.settled_at, now),
        in_flight=len(consumer.in_flight.leased),
        doing="" if doing is None else doing.what,
        doing_for=0.0 if doing is None else round(max(0.0, now - doing.since), 3),
        event_id=doing.deliveries[0].key if doing is not None and doing.deliveries else "",
        problem=health.describe(),
    )


def _ago(at: float | None, now: float) -> float | None:
    return None if at is None else round(max(0.0, now - at), 3)


@contextmanager
def beating(pulse: Pulse) -> Iterator[threading.Thread]:
    """Write a heartbeat every few seconds during the block; yield the thread."""
    done = threading.Event()

    def run() -> None:
        while True:
            try:
                pulse.beat()
            except Exception:
                logger.exception("%s: unexpected error; retrying", "heartbeat")
            if done.wait(heartbeats.INTERVAL):
                break
        pulse.end()

    thread = threading.Thread(target=run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        done.set()
        thread.join(heartbeats.INTERVAL)
