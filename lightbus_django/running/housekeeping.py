"""All periodic jobs of a worker: those of each database, and those in Redis."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from django.db import Error as DatabaseError
from django.db import connections, router

from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import Settings
from lightbus_django.database.errors import one_line
from lightbus_django.exceptions import DatabaseUnavailable, LightbusError
from lightbus_django.listening.consumer import Consumer
from lightbus_django.models import OutboxEvent

from .database_jobs import DatabaseJobs
from .jobs import Jobs, for_each
from .redis_jobs import RedisJobs

logger = logging.getLogger("lightbus_django")


class Housekeeping:
    """The jobs of each database and those in Redis, for one thread; `all_jobs` is for a thread each."""

    def __init__(
        self, consumers: Sequence[Consumer], *, service_name: str, settings: Settings, client: RedisClient
    ) -> None:
        self.databases = [
            DatabaseJobs(
                alias,
                [consumer for consumer in consumers if consumer.inbox.using == alias],
                service_name=service_name,
                settings=settings,
                client=client,
            )
            for alias in _aliases({consumer.inbox.using for consumer in consumers})
        ]
        self.redis = RedisJobs(
            consumers,
            self.fired_events,
            service_name=service_name,
            settings=settings,
            client=client,
        )

    def fired_events(self) -> set[str]:
        """Return the names of events that the service has fired lately, as far as the databases' jobs know."""
        return {name for database in self.databases for name in database.fired_events}

    def all_jobs(self) -> list[Jobs]:
        """Return the jobs of the databases, then those in Redis, which depend on what the databases know."""
        return [*(database.jobs for database in self.databases), self.redis.jobs]

    def step(self, now: float | None = None) -> bool:
        """Run the jobs that are due at `now`, monotonic time in seconds; return whether there was any work."""
        steps = [jobs.step(now) for jobs in self.all_jobs()]
        return any(steps)

    def problems(self) -> list[Exception]:
        """Return the errors of the jobs whose last run failed."""
        health = (each for jobs in self.all_jobs() for each in jobs.health.values())
        return [each.error for each in health if each.error]

    def relay(self) -> bool:
        """Publish what is left in the outbox of each database; return whether there was anything."""
        return any(self._in_each_database(DatabaseJobs.relay))

    def prune(self) -> bool:
        """Delete some old rows of each database; return whether there may be more."""
        return any(self._in_each_database(DatabaseJobs.prune))

    def apply_pauses(self) -> None:
        """Let the consumers rest whose groups are paused."""
        for_each(self.databases, DatabaseJobs.apply_pauses)

    def flag_due_retries(self) -> bool:
        """Tell the consumers that have retries due; return whether there are any."""
        return any(for_each(self.databases, DatabaseJobs.flag_due_retries))

    def _in_each_database(self, run: Callable[[DatabaseJobs], bool]) -> list[bool]:
        def detect_and_run(database: DatabaseJobs) -> bool:
            if database.has_outbox is None:
                database.detect_outbox()
            return run(database)

        return for_each(self.databases, detect_and_run)

    def detect_outboxes(self, aliases: Collection[str], timeout: float) -> dict[str, str]:
        """Look for the outbox in some databases at the same time; return the problems, by alias.

        Args:
            timeout: seconds to wait for all of them.
        """
        problems: dict[str, str] = {}

        def detect(database: DatabaseJobs) -> None:
            try:
                database.detect_outbox()
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
                threads.append(threading.Thread(target=detect, args=[database], name="detect outbox", daemon=True))
                threads[-1].start()
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return dict(problems)

    def skip_unavailable_databases(self, required: Collection[str], timeout: float) -> None:
        """Drop the jobs of databases that don't answer.

        Args:
            required: aliases of databases that must answer.
            timeout: seconds to wait for all of them.

        Raises:
            DatabaseUnavailable: a required database doesn't answer.
        """
        problems = self.detect_outboxes(list(connections), timeout)
        for alias, problem in problems.items():
            if alias in required:
                raise DatabaseUnavailable(problem)
            logger.warning("%s; skipping this database", problem)
        self.databases = [database for database in self.databases if database.alias not in problems]


def _aliases(inboxes: Collection[str]) -> Iterable[str]:
    """Yield the databases that may have our tables: `inboxes`, and those to which the router migrates them."""
    for alias in connections:
        is_dummy = connections[alias].vendor == "unknown"  # DATABASES = {"default": {}, ...}
        if alias in inboxes or (not is_dummy and router.allow_migrate_model(alias, OutboxEvent)):
            yield alias
