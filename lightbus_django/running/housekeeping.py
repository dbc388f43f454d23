"""Everything periodic but the renewal of leases: trimming, consumers long gone, and each database's own jobs."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from django.db import Error as DatabaseError
from django.db import connections, router

from lightbus_django.bus import streams
from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import Settings
from lightbus_django.database.errors import close_broken, one_line
from lightbus_django.events.names import stream_key
from lightbus_django.exceptions import BusUnavailable, DatabaseUnavailable, GroupMissing, LightbusError
from lightbus_django.listening.consumer import Consumer
from lightbus_django.listening.registry import registry
from lightbus_django.listening.stranded import report_stranded
from lightbus_django.models import OutboxEvent

from . import stale_groups
from .database_jobs import DatabaseJobs
from .jobs import Job, Jobs
from .stale_groups import StaleGroups

logger = logging.getLogger("lightbus_django")

Item = TypeVar("Item")
Result = TypeVar("Result")

TRIM_SIZE = 10_000
"""How many entries are trimmed at a time; it takes Redis some milliseconds."""


class Housekeeping:
    """What a worker does beside its consumers: `jobs` in Redis, and those of `databases`; each may have a thread."""

    def __init__(
        self, consumers: Sequence[Consumer], *, service_name: str, settings: Settings, client: RedisClient
    ) -> None:
        self.consumers = consumers
        self.service_name = service_name
        self.settings = settings
        self.client = client
        self.databases = list(self._databases())
        self.jobs = Jobs(
            "Redis",
            [
                Job("trim", self.trim, 60.0, at_once=lambda: True),
                Job("tidy_consumers", self.tidy_consumers, 3600.0),
                Job("report_stale_groups", self.report_stale_groups, stale_groups.INTERVAL),
                Job("report_ids_ahead", self.report_ids_ahead, 6 * 3600.0),
            ],
            client,
        )
        self._stale_groups = StaleGroups(client, stale_after=settings.group_stale_after)

    def _databases(self) -> Iterable[DatabaseJobs]:
        """Return those that may have our tables: none to which the router does not migrate them."""
        inboxes = {consumer.inbox.using for consumer in self.consumers}
        for alias in connections:
            # DATABASES = {"default": {}, ...} is of an unknown vendor.
            is_known = connections[alias].vendor != "unknown" and router.allow_migrate_model(alias, OutboxEvent)
            if is_known or alias in inboxes:
                yield DatabaseJobs(
                    alias,
                    [consumer for consumer in self.consumers if consumer.inbox.using == alias],
                    service_name=self.service_name,
                    settings=self.settings,
                    client=self.client,
                )

    # --- All in one thread --------------------------------------------------------------------

    def step(self, now: float | None = None) -> bool:
        """Run what is due at `now`, seconds on the monotonic clock; return whether there was something to do."""
        steps = [jobs.step(now) for jobs in self.all_jobs()]
        return any(steps)

    def all_jobs(self) -> list[Jobs]:
        """Return the jobs of the databases, and then those in Redis, which follow from what the databases know."""
        return [*(database.jobs for database in self.databases), self.jobs]

    def problems(self) -> list[Exception]:
        """Return why jobs failed, of those that failed when they ran last."""
        outages = (outage for jobs in self.all_jobs() for outage in jobs.outages.values())
        return [outage.error for outage in outages if outage.error]

    def relay(self) -> bool:
        """Relay what is left in any database; return whether there was something to do."""
        return any(_each(self.databases, lambda database: database.known().relay()))

    def flag_due_retries(self) -> bool:
        """Tell the consumers that have retries due; return whether there are any."""
        return any(_each(self.databases, DatabaseJobs.flag_due_retries))

    def prune(self) -> bool:
        """Delete some old rows of all databases; return whether there may be more."""
        return any(_each(self.databases, lambda database: database.known().prune()))

    def report_abandoned_retries(self) -> bool:
        """Warn of retries that nobody makes, in any database."""
        return any(_each(self.databases, lambda database: database.known().report_abandoned_retries()))

    def look(self, aliases: Iterable[str], timeout: float) -> dict[str, str]:
        """Look for the outbox in these databases, each in a thread; return what is wrong with those that don't answer.

        `timeout` is in seconds.
        """
        problems: dict[str, str] = {}

        def look(database: DatabaseJobs) -> None:
            try:
                database.look()
            except (LightbusError, DatabaseError) as error:
                problems[database.alias] = one_line(error)
            else:
                del problems[database.alias]
            finally:
                connections.close_all()

        threads = []
        for database in self.databases:
            if database.alias in aliases and database.has_outbox is None:
                problems[database.alias] = f"database {database.alias!r} has not answered within {timeout:g} s"
                threads.append(threading.Thread(target=look, args=[database], name="look", daemon=True))
                threads[-1].start()
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return dict(problems)

    def leave_out(self, needed: Collection[str], timeout: float) -> None:
        """Leave out the databases that don't answer within `timeout` seconds, unless one is needed.

        Raises:
            DatabaseUnavailable: it is.
        """
        problems = self.look(connections, timeout)
        for alias, problem in problems.items():
            if alias in needed:
                raise DatabaseUnavailable(problem)
            logger.warning("%s; it is left out", problem)
        self.databases = [database for database in self.databases if database.alias not in problems]

    # --- In Redis -----------------------------------------------------------------------------

    def trim(self) -> bool:
        """Trim our streams of what every group has finished with, beyond what is to be kept anyway."""
        keep_since = datetime.now(UTC) - timedelta(seconds=self.settings.stream_retention)

        def trim(stream: str) -> int:
            return streams.trim(
                self.client,
                stream,
                required_groups=self._groups_of(stream),
                keep_since=keep_since,
                keep_length=self.settings.stream_min_length,
                limit=TRIM_SIZE,
            )

        return any(_each(self._streams(), trim))

    def tidy_consumers(self) -> bool:
        """Delete consumers of our groups that have nothing pending and were idle for CONSUMER_TTL."""

        def tidy(consumer: Consumer) -> None:
            for stream in consumer.streams:
                with suppress(GroupMissing):  # its consumer is about to create it
                    idle = self.settings.consumer_ttl
                    count = streams.delete_idle_consumers(self.client, stream, consumer.group, idle=idle)
                    if count:
                        logger.info("%s: deleted %d consumers that are long gone", consumer.group, count)

        _each(self.consumers, tidy)
        return False

    def report_stale_groups(self) -> bool:
        """Warn of groups that nobody reads, and that keep events from being trimmed, and of events that ours left."""
        _each(
            self.consumers,
            lambda consumer: report_stranded(self.client, consumer.listener, consumer.group, self.settings.stream_use),
        )
        missing = _each(self._streams(), lambda stream: self._stale_groups.look_at(stream, self._groups_of(stream)))
        self._stale_groups.report_missing(set().union(*missing))
        return False

    def report_ids_ahead(self) -> bool:
        """Warn of streams whose ids are ahead of the time."""

        def report(stream: str) -> None:
            if (stream_id := streams.first_ahead(self.client, stream)) is not None:
                text = (
                    "%s: the stream id %s is ahead of the time, so those that follow are, too; such events are trimmed "
                    "as soon as all groups have acknowledged them, whatever their age"
                )
                logger.warning(text, stream, stream_id)

        _each(self._streams(), report)
        return False

    def _groups_of(self, stream: str) -> list[str]:
        """Return the groups that the service's listeners have in this stream, or will have."""
        return [
            listener.group(self.service_name)
            for listener in registry
            if stream in {stream_key(event, self.settings.stream_use) for event in listener.events}
        ]

    def _streams(self) -> list[str]:
        """Return the streams that this service listens to, and those to which its outboxes fired lately."""
        events = {event for listener in registry for event in listener.events}
        events.update(*(database.fired_lately for database in self.databases))
        return sorted({stream_key(event, self.settings.stream_use) for event in events})


def _each(items: Iterable[Item], work: Callable[[Item], Result]) -> list[Result]:
    """Return what `work` makes of each; one that fails keeps no other from its turn, and is told of in the end."""
    results = []
    problem: Exception | None = None
    for item in items:
        try:
            results.append(work(item))
        except BusUnavailable:
            raise  # nor would the others get an answer
        except (LightbusError, DatabaseError) as error:
            close_broken()
            problem = error
    if problem is not None:
        raise problem
    return results
