"""Handling events once: the idempotency key commits with the handler's own writes."""

import asyncio
import logging
import random
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db import DatabaseError, IntegrityError, connections, router, transaction
from django.db import Error as DatabaseOrInterfaceError
from django.db.models import QuerySet
from django.utils import timezone

from .conf import Settings
from .database import is_broken, is_transient
from .exceptions import BusUnavailable, DatabaseUnavailable, UnreadableEvent
from .listeners import Listener
from .messages import MAX_NAME_LENGTH, EventMessage, decode, dump_fields, event_key
from .models import FailedEvent, ProcessedEvent
from .transport import Entry

logger = logging.getLogger("lightbus_django")

WINDOW = 0.1
"""Seconds for which events share a transaction: fast handlers share a commit, slow ones do not."""

# What a handler may raise and its process goes on: sys.exit() and a cancelled coroutine raise no Exception.
_FAILURES = (Exception, SystemExit, asyncio.CancelledError)


class _KeyTaken(Exception):
    """The inbox has one of the keys already."""


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """An entry to handle: the message that it holds, or the reason why it holds none."""

    entry: Entry
    key: str
    event_name: str
    message: EventMessage | None = None
    problem: UnreadableEvent | None = None

    @classmethod
    def of(cls, entry: Entry) -> "Delivery":
        try:
            message = decode(entry.fields, entry.stream_id, entry.deliveries)
        except UnreadableEvent as problem:
            # Keyed by its place: a readable event that comes under the same id later is another matter.
            names = [entry.fields.get(name, b"?").decode(errors="replace") for name in (b"api_name", b"event_name")]
            return cls(entry, event_key(f"{entry.stream}/{entry.stream_id}"), ".".join(names), problem=problem)
        return cls(entry, event_key(message.id), message.name, message)


class Inbox:
    """One listener's part of the database.

    `handle` and `retry` raise DatabaseUnavailable or BusUnavailable where nobody is to blame: then
    what they return for is not committed, and they may be called again.
    """

    def __init__(self, listener: Listener, group: str, settings: Settings) -> None:
        self.listener = listener
        self.group = group
        self.settings = settings
        self.using = listener.using or router.db_for_write(ProcessedEvent)
        self._share = settings.batch_size

    def handle(
        self,
        deliveries: Sequence[Delivery],
        *,
        begin: Callable[[Delivery], None] = lambda delivery: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> int:
        """Handle deliveries in order; return how many of them, from the first, are settled.

        Not all, if the window closes or `stopping()` says so. `begin` is told of each event before
        its handler is called. An event that was handled before is left alone. A handler that raises
        leaves a FailedEvent, and its neighbours alone.
        """
        if not self.listener.idempotent:
            return self._handle_without_keys(deliveries, begin, stopping)
        deliveries = deliveries[: self._share]
        known: set[str] = set()
        while True:
            try:
                return self._handle_with_keys(deliveries, known, begin, stopping)
            except _KeyTaken:
                with self._nobody_to_blame():
                    keys = self._keys(delivery.key for delivery in deliveries)
                    found = set(keys.values_list("event_id", flat=True))
                if found == known:
                    raise DatabaseUnavailable(f"{self.group}: another process is at the same events") from None
                known = found

    def _handle_with_keys(
        self,
        deliveries: Sequence[Delivery],
        known: set[str],
        begin: Callable[[Delivery], None],
        stopping: Callable[[], bool],
    ) -> int:
        new: dict[str, Delivery] = {}
        for delivery in deliveries:
            if delivery.key not in known:
                new.setdefault(delivery.key, delivery)
        settled = 0
        closed = False
        try:
            with self._nobody_to_blame(), transaction.atomic(using=self.using):
                self._insert_keys(new.values())
                started = time.monotonic()
                for delivery in deliveries:
                    settled += 1
                    if not new.pop(delivery.key, None):
                        continue
                    begin(delivery)
                    self._handle_one(delivery)
                    closed = time.monotonic() - started > WINDOW
                    if closed or stopping():
                        break
                if new:  # left for another transaction
                    self._keys(new).delete()
        except DatabaseError as error:
            # The commit was refused, by a deferred constraint for instance; of several, one by one tells by whose.
            if len(deliveries) > 1:
                raise
            self._record(deliveries[0], error, key=True)
        self._share = settled if closed else min(2 * self._share, self.settings.batch_size)
        return settled

    def _handle_without_keys(
        self, deliveries: Sequence[Delivery], begin: Callable[[Delivery], None], stopping: Callable[[], bool]
    ) -> int:
        settled = 0
        for delivery in deliveries:
            begin(delivery)
            try:
                with self._nobody_to_blame():
                    self._call(delivery)
            except (BusUnavailable, DatabaseUnavailable):
                if settled:
                    return settled  # these are; the next call meets the trouble again
                raise
            except _FAILURES as error:
                self._record(delivery, error)
            settled += 1
            if stopping():
                break
        return settled

    def _handle_one(self, delivery: Delivery) -> None:
        try:
            with transaction.atomic(using=self.using):
                self._call(delivery)
        except _FAILURES as error:
            if isinstance(error, BusUnavailable) or is_transient(error):
                raise
            self._record(delivery, error)

    def _call(self, delivery: Delivery) -> None:
        if delivery.message is None:
            raise delivery.problem or UnreadableEvent("it holds no message")
        with self._hooks_guarded():
            self.listener.call(delivery.message)

    def bury(self, delivery: Delivery, reason: str) -> None:
        """Make a delivery a dead letter without handling it, unless it was handled before."""
        with self._nobody_to_blame():
            known = self._keys([delivery.key]).exists()
        if not known:
            self._record(delivery, UnreadableEvent(reason), key=True)

    @contextmanager
    def _hooks_guarded(self) -> Iterator[None]:
        """See to it that an event's commit hook that raises does not keep the next event's from running."""
        connection: Any = connections[self.using]
        first = len(connection.run_on_commit)
        yield
        hooks = connection.run_on_commit
        for number in range(first, len(hooks)):
            savepoints, hook, robust = hooks[number]
            if not robust:
                hooks[number] = savepoints, partial(_run_hook, hook, self.group), True

    # --- Failures -----------------------------------------------------------------------------

    def _record(self, delivery: Delivery, error: BaseException, *, key: bool = False) -> None:
        """Write the FailedEvent, and with `key` the idempotency key, where they are not there yet."""
        entry = delivery.entry
        failed = FailedEvent(
            event_id=delivery.key,
            consumer_group=self.group,
            event_name=_storable(delivery.event_name)[:MAX_NAME_LENGTH],
            stream=entry.stream,
            stream_id=entry.stream_id,
            fields=dump_fields(entry.fields),
        )
        self._describe(failed, error, entry.deliveries)
        with self._nobody_to_blame(), transaction.atomic(using=self.using):
            if key:
                ProcessedEvent.objects.using(self.using).bulk_create([self._key(delivery)], ignore_conflicts=True)
            FailedEvent.objects.using(self.using).bulk_create([failed], ignore_conflicts=True)

    def _describe(self, failed: FailedEvent, error: BaseException, attempts: int) -> None:
        failed.attempts = attempts
        failed.error = _storable(f"{type(error).__name__}: {error}")[:10_000]
        failed.traceback = _storable("".join(traceback.format_exception(error)))[-100_000:]
        failed.next_attempt_at = None
        if attempts < self.settings.max_attempts and not isinstance(error, UnreadableEvent):
            delay = min(self.settings.retry_backoff * 2 ** (attempts - 1), self.settings.retry_backoff_max)
            # Jitter, lest what failed together fails together again.
            failed.next_attempt_at = timezone.now() + timedelta(seconds=delay * random.uniform(0.5, 1))
        logger.warning(
            "%s: %s %s failed, attempt %d; %s: %s",
            self.group,
            failed.event_name,
            failed.event_id,
            attempts,
            f"next {failed.next_attempt_at:%H:%M:%S}" if failed.next_attempt_at else "it is a dead letter now",
            type(error).__name__,
        )

    def retry(self, now: datetime) -> bool:
        """Make the one retry that is due longest at `now`; return whether there was one."""
        lease = max(self.settings.acknowledgement_timeout, self.settings.retry_backoff)
        failures = FailedEvent.objects.using(self.using)
        with self._nobody_to_blame():
            failed = failures.claim_due(self.group, now, now + timedelta(seconds=lease))
        if failed is None:
            return False
        error = self._retry_claimed(failed)
        if error is not None:
            attempt = failed.attempts
            self._describe(failed, error, attempt)
            with self._nobody_to_blame():
                failures.filter(pk=failed.pk, attempts=attempt).update(
                    error=failed.error, traceback=failed.traceback, next_attempt_at=failed.next_attempt_at
                )
        return True

    def _retry_claimed(self, failed: FailedEvent) -> BaseException | None:
        failures = FailedEvent.objects.using(self.using).filter(pk=failed.pk)
        if failed.attempts > self.settings.max_attempts:
            return UnreadableEvent(
                f"its process died while handling it, at each of the last of {failed.attempts - 1} attempts"
            )
        try:
            with self._nobody_to_blame():
                if not self.listener.idempotent:
                    self.listener.call(failed.message())
                    failures.delete()
                    return None
                # First, so that of two processes that make this attempt one has nothing to delete.
                with transaction.atomic(using=self.using):
                    if failures.delete()[0]:
                        with self._hooks_guarded():
                            self.listener.call(failed.message())
        except (BusUnavailable, DatabaseUnavailable):
            with self._nobody_to_blame():
                failures.update(attempts=failed.attempts - 1, next_attempt_at=timezone.now())
            raise
        except _FAILURES as error:
            return error
        return None

    # --- Keys ---------------------------------------------------------------------------------

    def _key(self, delivery: Delivery) -> ProcessedEvent:
        name = _storable(delivery.event_name)[:MAX_NAME_LENGTH]
        return ProcessedEvent(event_id=delivery.key, consumer_group=self.group, event_name=name)

    def _keys(self, keys: Iterable[str]) -> QuerySet[ProcessedEvent]:
        return ProcessedEvent.objects.using(self.using).filter(consumer_group=self.group, event_id__in=list(keys))

    def _insert_keys(self, deliveries: Iterable[Delivery]) -> None:
        try:
            ProcessedEvent.objects.using(self.using).bulk_create([self._key(delivery) for delivery in deliveries])
        except IntegrityError as error:
            raise _KeyTaken from error

    @contextmanager
    def _nobody_to_blame(self) -> Iterator[None]:
        try:
            yield
        except DatabaseOrInterfaceError as error:
            if connections[self.using].in_atomic_block:
                raise  # to the one who opened the transaction
            broken = is_broken(self.using)
            if broken or is_transient(error):
                raise DatabaseUnavailable(f"database {self.using!r}: {type(error).__name__}: {error}") from error
            raise


def _run_hook(hook: Callable[[], object], group: str) -> None:
    try:
        hook()
    except Exception:
        logger.exception("%s: what a handler gave to transaction.on_commit() raised", group)


def _storable(text: str) -> str:
    """Return text that every database takes: PostgreSQL has no NUL, and no encoding has surrogates."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
