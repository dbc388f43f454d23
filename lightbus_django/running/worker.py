"""A worker process: a thread for each listener, for the jobs of each database and in Redis, and for leases."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from django.db import connections, router

from lightbus_django.bus.client import RedisClient
from lightbus_django.bus.consumer_group import ALIVE_INTERVAL
from lightbus_django.conf import Settings
from lightbus_django.database.connections import check_autocommit, release_connections, warn_of_small_pools
from lightbus_django.exceptions import BusError, BusUnavailable, BusUnsupported, ConfigurationError, LightbusError
from lightbus_django.listening.consumer import BLOCK, Consumer
from lightbus_django.listening.listener import Listener
from lightbus_django.models import OutboxEvent

from .burst import run_burst
from .housekeeping import Housekeeping
from .jobs import Jobs
from .loop import repeat
from .outages import Outage

logger = logging.getLogger("lightbus_django")

LOOK_TIMEOUT = 5.0
"""Seconds for which a start waits for an answer of a database."""

HEAD_START = 1.0
"""Seconds that the jobs in Redis leave to those of the databases, which tell them to which streams was fired."""


class Worker:
    """Runs listeners in this process, under one service and one process name."""

    def __init__(
        self,
        listeners: Iterable[Listener],
        *,
        service_name: str,
        process_name: str,
        settings: Settings,
        leave: bool = False,
    ) -> None:
        """Make a worker; nothing happens before `run` or `run_burst`.

        Args:
            leave: nobody comes back under this process name, so a stop removes it from the groups.
        """
        self.service_name = service_name
        self.process_name = process_name
        self.settings = settings
        self.client = RedisClient(settings.url, timeout=settings.redis_timeout + BLOCK, retries=0)
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
        self.housekeeping = Housekeeping(
            self.consumers, service_name=service_name, settings=settings, client=self.client
        )
        self._stopping = threading.Event()

    def describe(self) -> list[str]:
        """Return what this worker is about, in lines for its log."""
        lines = [f"service {self.service_name}, process {self.process_name}, Redis {self.client}"]
        for consumer in self.consumers:
            listener = consumer.listener
            lines.append(f"{listener.path} listens to {', '.join(listener.events)} in group {consumer.group}")
        if not self.consumers:
            lines.append("no listeners: only the outbox is relayed")
        return lines

    def check_databases(self) -> None:
        """Raise ConfigurationError if the tables are not there, or a listener's transactions would not be committed.

        A database that does not answer is no reason.
        """
        for consumer in self.consumers:
            check_autocommit(consumer.inbox.using)
        alias = router.db_for_write(OutboxEvent)
        self.housekeeping.look([alias], LOOK_TIMEOUT)
        databases = {database.alias: database.has_outbox for database in self.housekeeping.databases}
        if databases.get(alias, False) is False:
            raise ConfigurationError(f"The database {alias!r} has no tables of lightbus_django: run manage.py migrate.")

    def check_bus(self) -> None:
        """Raise BusUnsupported if what answers at URL is of no use: a Sentinel, a node of a cluster, a web server.

        A Redis that does not answer is no reason.
        """
        try:
            self.client.check({stream for consumer in self.consumers for stream in consumer.streams})
        except BusUnsupported:
            raise
        except BusUnavailable:
            pass

    def stop(self) -> None:
        """Let `run` or `run_burst` return once the events in hand are settled; safe in a signal handler."""
        self._stopping.set()
        for consumer in self.consumers:
            consumer.stopping.set()

    @contextmanager
    def stopping_on(self, *signals: signal.Signals) -> Iterator[None]:
        """Stop cleanly on the first of these signals, end at once on the second."""

        received = 0

        def on_signal(signum: int, frame: FrameType | None) -> None:
            # Counted, for a parent may have asked for the stop before the first signal comes.
            nonlocal received
            received += 1
            if received > 1:
                os._exit(128 + signum)
            self.stop()

        before = {signum: signal.signal(signum, on_signal) for signum in signals}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def run(self, *, stop_timeout: float = 30.0) -> bool:
        """Run until `stop()`.

        Returns whether all is well: no thread died, and all ended within `stop_timeout` seconds from then.
        """
        threads = [
            threading.Thread(target=self._run_consumer, args=[consumer], name=consumer.group, daemon=True)
            for consumer in self.consumers
        ]
        inboxes = [consumer.inbox.using for consumer in self.consumers]
        warn_of_small_pools([*inboxes, *(database.alias for database in self.housekeeping.databases)])
        jobs_of = {
            threading.Thread(target=self._run_jobs, args=[jobs], name=f"jobs of {jobs.name}", daemon=True): jobs
            for jobs in self.housekeeping.all_jobs()
        }
        well = True
        with self._renewing() as leases:
            for thread in [*threads, *jobs_of]:
                thread.start()
            while not self._stopping.is_set():
                time.sleep(0.1)  # not wait(), which a signal handler that calls stop() could lock up
                for jobs in jobs_of.values():
                    jobs.report_stuck()
                if (
                    not all(thread.is_alive() for thread in [*threads, *jobs_of, leases])
                    and not self._stopping.is_set()
                ):
                    logger.critical("a thread died; ending the process")
                    well = False
                    self.stop()
            logger.info("stopping")
            deadline = time.monotonic() + stop_timeout
            while time.monotonic() < deadline:
                # A job that hangs has nothing in hand that another process could not do as well.
                awaited = [*threads, *(thread for thread, jobs in jobs_of.items() if not jobs.is_stuck())]
                if not any(thread.is_alive() for thread in awaited):
                    break
                time.sleep(0.02)  # nor join(), which sleeps through a second signal
        for thread, jobs in jobs_of.items():
            if thread.is_alive():
                logger.warning("the jobs of %s are not waited for: it does not answer", jobs.name)
        late = [thread.name for thread in threads if thread.is_alive()]
        if late:
            logger.warning(
                "not ended within %g s: %s; what they have in hand is left to others", stop_timeout, ", ".join(late)
            )
        else:
            if not any(thread.is_alive() for thread in jobs_of):
                self.client.close()
            logger.info("stopped")
        return well and not late

    def run_burst(self) -> None:
        """Handle, retry and relay until there is nothing left to do, or `stop()` is called.

        Raises:
            LightbusError, DatabaseError: something could not be done; nothing is lost.
        """
        needed = {router.db_for_write(OutboxEvent), *(consumer.inbox.using for consumer in self.consumers)}
        self.housekeeping.leave_out(needed, LOOK_TIMEOUT)
        with self._renewing(), ExitStack() as stops:
            for consumer in self.consumers:
                stops.callback(consumer.stop)
            run_burst(self.consumers, self.housekeeping, self._stopping.is_set)

    # --- Threads ------------------------------------------------------------------------------

    def _run_consumer(self, consumer: Consumer) -> None:
        def step() -> Exception | None:
            consumer.step()
            return consumer.contended

        try:
            repeat(step, Outage(consumer.group, self.client), self._stopping)
            consumer.stop()
        except LightbusError as error:
            logger.warning("%s: what is in hand is left to the timeout: %s", consumer.group, error)
        finally:
            connections.close_all()

    def _run_jobs(self, jobs: Jobs) -> None:
        def step() -> None:
            if not jobs.step():
                release_connections(idle=False)  # they are due each second
                self._stopping.wait(jobs.seconds_left())

        try:
            if jobs is self.housekeeping.jobs:
                self._stopping.wait(HEAD_START)
            repeat(step, Outage(f"jobs of {jobs.name}", self.client), self._stopping)
        finally:
            connections.close_all()

    @contextmanager
    def _renewing(self) -> Iterator[threading.Thread]:
        """Renew leases meanwhile, and show up: no slow handler or database may keep consumers from it."""
        done = threading.Event()

        def renew() -> None:
            while not done.wait(min(self.settings.acknowledgement_timeout / 4, ALIVE_INTERVAL)):
                for consumer in self.consumers:
                    if done.is_set():
                        break  # each may take a timeout while Redis hangs
                    try:
                        consumer.renew()
                    except BusError as error:
                        logger.warning("%s: can't renew its leases: %s", consumer.group, error)
                    except Exception:
                        logger.exception("%s: an error that should not be; trying again", consumer.group)

        thread = threading.Thread(target=renew, name="leases", daemon=True)
        thread.start()
        try:
            yield thread
        finally:
            done.set()
            thread.join()
