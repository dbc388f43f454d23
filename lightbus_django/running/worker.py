"""A worker process: threads for its listeners, for the jobs of each database and in Redis, and for leases."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from django.db import connections, router

from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import Settings
from lightbus_django.database.connections import check_autocommit, release_connections, warn_of_small_pools
from lightbus_django.exceptions import BusUnavailable, BusUnsupported, ConfigurationError
from lightbus_django.listening.consumer import BLOCK, Consumer
from lightbus_django.listening.listener import Listener
from lightbus_django.listening.state import State
from lightbus_django.models import OutboxEvent

from .burst import run_burst
from .health import Health
from .heartbeat import Pulse, beating
from .housekeeping import Housekeeping
from .jobs import Jobs
from .lease_renewal import renewing_leases
from .loop import run_until_stopped
from .own_threads import own_threads
from .shared_threads import SharedThreads

logger = logging.getLogger("lightbus_django")

DATABASE_TIMEOUT = 5.0
"""Seconds that a starting worker waits for an answer of the databases."""

HEAD_START = 1.0
"""Seconds by which the jobs in Redis start later than those of the databases, which tell them the streams to trim."""


class Worker:
    """Runs listeners and periodic jobs in this process, under one service name and one process name."""

    def __init__(
        self,
        listeners: Iterable[Listener],
        *,
        service_name: str,
        process_name: str,
        settings: Settings,
        threads: int | None = None,
        leave: bool = False,
    ) -> None:
        """Create a worker; nothing is connected before `run` or `run_burst`.

        Args:
            threads: how many threads handle events, at most; None takes the setting THREADS.
            leave: remove the process name from the consumer groups on a stop, because it won't be used again.
        """
        self.service_name = service_name
        self.process_name = process_name
        self.settings = settings
        self.client = RedisClient(settings.url, timeout=settings.redis_timeout + BLOCK, retries=0, can_wait=True)
        self.consumers = [
            Consumer(
                listener,
                service_name=service_name,
                process_name=process_name,
                settings=settings,
                client=self.client,
                leave=leave,
            )
            for listener in listeners
        ]
        self._healths = {consumer: Health(consumer.group, self.client) for consumer in self.consumers}
        self.housekeeping = Housekeeping(
            self.consumers, service_name=service_name, settings=settings, client=self.client
        )
        self._threads = threads or settings.threads
        self._stopping = threading.Event()

    def describe(self) -> list[str]:
        """Return what this worker runs, as lines for the log."""
        lines = [f"service {self.service_name}, process {self.process_name}, Redis {self.client}"]
        for consumer in self.consumers:
            listener = consumer.listener
            lines.append(f"{listener.path} listens to {', '.join(listener.events)} in group {consumer.group}")
        if not self.consumers:
            lines.append("no listeners: only the periodic jobs run, such as the relay")
        return lines

    def check_databases(self) -> None:
        """Check that the tables exist, and that transactions are committed. A database that doesn't answer passes.

        Raises:
            ConfigurationError
        """
        for consumer in self.consumers:
            check_autocommit(consumer.inbox.using)
        alias = router.db_for_write(OutboxEvent)
        self.housekeeping.detect_outboxes([alias], DATABASE_TIMEOUT)
        databases = {database.alias: database.has_outbox for database in self.housekeeping.databases}
        if databases.get(alias, False) is False:
            raise ConfigurationError(f"The database {alias!r} has no tables of lightbus_django: run manage.py migrate.")

    def check_bus(self) -> None:
        """Check that the server at URL is supported. A server that doesn't answer passes.

        Raises:
            BusUnsupported: it is a Sentinel, a cluster node or a web server, for instance.
        """
        try:
            self.client.check({stream for consumer in self.consumers for stream in consumer.streams})
        except BusUnsupported:
            raise
        except BusUnavailable:
            pass

    def stop(self) -> None:
        """Let `run` or `run_burst` return after the events in hand; safe in a signal handler."""
        self._stopping.set()
        for consumer in self.consumers:
            consumer.stopping.set()

    def run(self, *, stop_timeout: float = 30.0) -> bool:
        """Run until `stop` is called.

        Args:
            stop_timeout: seconds that a stop waits for the events in hand.

        Returns whether no thread died and all listeners stopped in time.
        """
        listeners = self._listener_threads()
        jobs = {_thread(f"jobs of {each.name}", self._run_jobs, each): each for each in self.housekeeping.all_jobs()}
        warn_of_small_pools(self._database_threads())
        timeout = self.settings.acknowledgement_timeout
        with beating(self._pulse()), renewing_leases(self.consumers, timeout) as leases:
            for thread in [*listeners, *jobs]:
                thread.start()
            died = self._wait_for_stop([*listeners, *jobs, leases], list(jobs.values()))
            logger.info("stopping")
            _join(listeners, jobs, stop_timeout)
        return self._finish(listeners, jobs, stop_timeout) and not died

    def run_burst(self) -> None:
        """Handle, retry and relay until there is nothing left to do, or until `stop` is called.

        Raises:
            LightbusError, DatabaseError: some work could not be done; nothing is lost.
        """
        required = {router.db_for_write(OutboxEvent), *(consumer.inbox.using for consumer in self.consumers)}
        self.housekeeping.skip_unavailable_databases(required, DATABASE_TIMEOUT)
        timeout = self.settings.acknowledgement_timeout
        with beating(self._pulse()), renewing_leases(self.consumers, timeout), ExitStack() as stops:
            for consumer in self.consumers:
                stops.callback(consumer.stop)
            run_burst(self.consumers, self.housekeeping, self._stopping.is_set)

    def _pulse(self) -> Pulse:
        return Pulse(
            self._healths,
            self.housekeeping.all_jobs,
            self.housekeeping.fired_events,
            service_name=self.service_name,
            process_name=self.process_name,
            settings=self.settings,
            client=self.client,
        )

    # --- Threads ------------------------------------------------------------------------------

    def _database_threads(self) -> Counter[str]:
        """Return the number of threads that use each database."""
        inboxes = Counter(consumer.inbox.using for consumer in self.consumers)
        handling = Counter({using: min(count, self._threads) for using, count in inboxes.items()})
        return handling + Counter(database.alias for database in self.housekeeping.databases)

    def _listener_threads(self) -> list[threading.Thread]:
        if len(self.consumers) <= self._threads:
            return own_threads(self._healths, self._stopping)
        return SharedThreads(self._healths, self._threads, client=self.client, stopping=self._stopping).threads

    def _run_jobs(self, jobs: Jobs) -> None:
        def step() -> None:
            if not jobs.step():
                release_connections(idle=False)  # some jobs are due every second
                self._stopping.wait(jobs.seconds_left())

        try:
            if jobs is self.housekeeping.redis.jobs:
                self._stopping.wait(HEAD_START)
            run_until_stopped(step, Health(f"jobs of {jobs.name}", self.client), self._stopping)
        finally:
            connections.close_all()

    # --- The main thread: it only sleeps, so that signals are handled at once -----------------

    def _wait_for_stop(self, threads: list[threading.Thread], all_jobs: list[Jobs]) -> bool:
        """Wait until `stop` is called, or a thread dies, which calls it; return whether one died."""
        while not self._stopping.is_set():
            time.sleep(0.1)  # Event.wait() may deadlock with a signal handler that calls stop()
            for jobs in all_jobs:
                jobs.warn_if_stuck()
            dead = [thread.name for thread in threads if not thread.is_alive()]
            if dead and not self._stopping.is_set():
                logger.critical("thread %s died; stopping the process", ", ".join(dead))
                self.stop()
                return True
        return False

    def _finish(self, listeners: list[threading.Thread], jobs: dict[threading.Thread, Jobs], timeout: float) -> bool:
        """Log which threads have stopped, and close the client; return whether all listeners have."""
        hanging = [each for thread, each in jobs.items() if thread.is_alive()]
        for each in hanging:
            logger.warning("not waiting for the jobs of %s, which does not answer", each.name)
        if any(thread.is_alive() for thread in listeners):
            late = [consumer.group for consumer in self.consumers if consumer.state is not State.STOPPED]
            logger.warning(
                "still running %g s after the stop: %s; other processes take over their events",
                timeout,
                ", ".join(late),
            )
            return False
        if not hanging:
            self.client.close()
        logger.info("stopped")
        return True


def _thread(name: str, run: Any, argument: Any) -> threading.Thread:
    return threading.Thread(target=run, args=[argument], name=name, daemon=True)


def _join(listeners: list[threading.Thread], jobs: dict[threading.Thread, Jobs], timeout: float) -> None:
    """Wait for threads, but not for jobs that are stuck: another process can do them as well."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        awaited = [*listeners, *(thread for thread, each in jobs.items() if not each.is_stuck())]
        if not any(thread.is_alive() for thread in awaited):
            break
        time.sleep(0.02)  # Thread.join() would delay the handler of a second signal
