"""Retries failed events."""

import logging
from datetime import datetime, timedelta
from functools import partial

from django.db import transaction
from django.db.models import QuerySet

from lightbus_django.database.errors import transient_errors
from lightbus_django.exceptions import DatabaseUnavailable, EventContended, UnreadableEvent
from lightbus_django.models import FailedEvent

from .activity import CLAIMING, HANDLER
from .handler_runner import HandlerRunner
from .keys import AlreadyHandled

logger = logging.getLogger("lightbus_django")

CONTENDED_DELAY = timedelta(seconds=1)
"""How long a contended retry is put off."""


class Retries:
    """The retries of one listener's failed events."""

    def __init__(self, runner: HandlerRunner, max_attempts: int) -> None:
        self._runner = runner
        self._failures = runner.failures
        self._max_attempts = max_attempts
        self._claimed: FailedEvent | None = None
        """A retry that was claimed and has not ended, because a server was unavailable."""
        self._failure: BaseException | None = None
        """Its failure, if that could not be recorded."""

    def retry(self, now: datetime) -> bool:
        """Retry the event that has been due longest at `now`; return False if none is due.

        Raises:
            BusUnavailable, DatabaseUnavailable: no attempt is lost; the next call continues.
        """
        self._runner.activity.start(CLAIMING)
        failed = self._claim(now)
        if failed is None:
            return False
        handle = partial(self._handle, failed)
        try:
            with transient_errors(self._runner.using):
                self._failure = handle()
        except DatabaseUnavailable as error:
            try:
                self._failure = self._runner.contention.handle_again(failed.event_id, handle, error)
            except EventContended:
                self.release(CONTENDED_DELAY)
                return True
        is_handled = self._failure is None
        with transient_errors(self._runner.using):
            self._record(failed)
        if is_handled and self._runner.announcer.retried(failed):
            self._runner.tally.retried()
        self._runner.contention.succeeded(failed.event_id)
        return True

    def release(self, delay: timedelta = timedelta(0)) -> None:
        """Let any process make the retry that is claimed, after `delay`; if it was made, record how it ended."""
        if self._claimed is not None:
            with transient_errors(self._runner.using):
                if self._failure is None:
                    self._failures.release(self._claimed, delay)
                self._record(self._claimed)

    def _claim(self, now: datetime) -> FailedEvent | None:
        """Claim the next retry, unless one is claimed and still ours."""
        with transient_errors(self._runner.using):
            if self._claimed is not None and self._failure is not None:
                self._record(self._claimed)
            if self._claimed is None or not self._failures.extend_claim(self._claimed, now):
                self._claimed = self._failures.claim_due(now)
        return self._claimed

    def _record(self, failed: FailedEvent) -> None:
        """Record how the retry ended."""
        failure = self._failure
        if failure is not None:
            self._failures.record_retry(failed, failure)
        self._claimed = self._failure = None
        if failure is not None:
            self._runner.announcer.failed(failed, failure)

    def _handle(self, failed: FailedEvent) -> BaseException | None:
        """Handle a failed event; return its failure."""
        if failed.attempts > self._max_attempts:
            return UnreadableEvent(f"its process died in the last of {failed.attempts - 1} attempts")
        runner = self._runner
        if failed.may_have_effects:
            logger.warning("%s: retrying %s, which may already have left effects", runner.group, failed.event_id)
        row = self._failures.unedited(failed)  # an edit since the claim is for the next attempt
        if not runner.listener.idempotent:
            with runner.no_transaction() as handling:
                self._call_handler(failed)
            if handling.failure is None:
                with transaction.atomic(using=runner.using):
                    _lock_and_delete(row, failed)
            return handling.failure
        try:
            with runner.transaction([failed.event_id], is_retry=True) as handling:
                # First, so that of two processes that make this attempt only one deletes the row.
                if not _lock_and_delete(row, failed):
                    raise AlreadyHandled
                handling.monitor = runner.keys.renew(failed, handling.processed_at)
                self._call_handler(failed)
        except AlreadyHandled:
            runner.announcer.note_found(failed.event_id)
            return runner.failure_of_handled(failed.event_id)
        return handling.failure

    def _call_handler(self, failed: FailedEvent) -> None:
        self._runner.activity.start(HANDLER)
        self._runner.call(self._runner.listener.call_one, failed.message())


def _lock_and_delete(row: QuerySet[FailedEvent], failed: FailedEvent) -> bool:
    """Delete a row in the transaction that is open; return False if it is not as it was.

    It is locked first: with receivers of delete signals, Django reads the row and then deletes it by its primary key.
    """
    return bool(row.update(attempts=failed.attempts)) and bool(row.delete()[0])
