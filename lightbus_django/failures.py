"""Failed events: how a failure is recorded, when it is tried again, and whose turn that is."""

import logging
import random
import sysconfig
import traceback
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
from django.utils import timezone

from .conf import Settings
from .exceptions import TransactionEnded, UnreadableEvent
from .groups import Entry
from .ids import event_key
from .messages import MAX_NAME_LENGTH, EventMessage, decode, dump_fields
from .models import FailedEvent

logger = logging.getLogger("lightbus_django")


# Where people do not look for their own code.
_LIBRARIES = (str(Path(__file__).parent), *{sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")})

MAX_CONTENT = 8 * 1024 * 1024
"""Characters of an entry that are kept; MariaDB's max_allowed_packet is 16 MiB if it was not told otherwise."""


class Delivery(msgspec.Struct, frozen=True, eq=False):
    """An entry to handle: the message that it holds, or the reason why it holds none."""

    entry: Entry
    message: EventMessage | None = None
    problem: UnreadableEvent | None = None

    @classmethod
    def of(cls, entry: Entry) -> "Delivery":
        try:
            return cls(entry, decode(entry.fields, entry.stream_id, entry.deliveries))
        except UnreadableEvent as problem:
            return cls(entry, problem=problem)

    @property
    def key(self) -> str:
        """What the database knows the event by."""
        if self.message is not None:
            return event_key(self.message.id)
        # Its place: a readable event that comes under the same id later is another matter.
        return event_key(f"{self.entry.stream}/{self.entry.stream_id}")

    @property
    def event_name(self) -> str:
        if self.message is not None:
            return self.message.name
        names = (self.entry.fields.get(name, b"?") for name in (b"api_name", b"event_name"))
        return _storable(b".".join(names).decode(errors="backslashreplace"))[:MAX_NAME_LENGTH]


class Failures:
    """The failed events of one consumer group. Its methods raise Django's database errors."""

    def __init__(self, group: str, using: str, settings: Settings) -> None:
        self.group = group
        self.settings = settings
        self.rows = FailedEvent.objects.using(using)

    def record(self, delivery: Delivery, error: BaseException) -> None:
        """Write down that `delivery` failed, unless that is written already."""
        entry = delivery.entry
        failed = FailedEvent(
            event_id=delivery.key,
            consumer_group=self.group,
            event_name=delivery.event_name,
            stream=entry.stream,
            stream_id=entry.stream_id,
            fields=dump_fields(entry.fields),
            attempts=entry.deliveries,
        )
        if (size := len(failed.fields)) > MAX_CONTENT:
            failed.fields = dump_fields({})
            error = UnreadableEvent(f"{_where(error)}; and its content takes {size} characters, too many to keep")
        self._describe(failed, error)
        self.rows.bulk_create([failed], ignore_conflicts=True)
        self._say(failed, error)

    def claim_due(self, now: datetime) -> FailedEvent | None:
        """Take the retry that is due longest; it is this process's for the acknowledgement timeout."""
        return self.rows.claim_due(self.group, now, self._lease(now))

    def renew(self, failed: FailedEvent, now: datetime) -> bool:
        """Claim the same attempt for longer; return whether it is still this process's."""
        return bool(self.rows.filter(pk=failed.pk, attempts=failed.attempts).update(next_attempt_at=self._lease(now)))

    def _lease(self, now: datetime) -> datetime:
        return now + timedelta(seconds=max(self.settings.acknowledgement_timeout, self.settings.retry_backoff))

    def record_again(self, failed: FailedEvent, error: BaseException) -> None:
        """Write down that an attempt failed that was claimed before."""
        self._describe(failed, error)
        if isinstance(error, TransactionEnded):  # the row may have gone with the handler's commit
            self.rows.bulk_create([failed], ignore_conflicts=True)
        # By its count of attempts the row shows whether it is still this process's.
        self.rows.filter(pk=failed.pk, attempts=failed.attempts).update(
            error=failed.error,
            traceback=failed.traceback,
            failed_at=timezone.now(),
            next_attempt_at=failed.next_attempt_at,
        )
        self._say(failed, error)

    def give_back(self, failed: FailedEvent, delay: timedelta) -> None:
        """Undo a claim: the attempt was not made, and is due after `delay`."""
        self.rows.filter(pk=failed.pk, attempts=failed.attempts).update(
            attempts=failed.attempts - 1, next_attempt_at=timezone.now() + delay
        )

    def _describe(self, failed: FailedEvent, error: BaseException) -> None:
        failed.error = _storable(f"{type(error).__name__}: {_text(error)}")[:10_000]
        failed.traceback = _storable("".join(traceback.format_exception(error)))[-100_000:]
        failed.next_attempt_at = None
        is_final = isinstance(error, (UnreadableEvent, TransactionEnded))
        if failed.attempts < self.settings.max_attempts and not is_final:
            delay = min(self.settings.retry_backoff * 2 ** (failed.attempts - 1), self.settings.retry_backoff_max)
            # Jitter, lest what failed together fails together again.
            failed.next_attempt_at = timezone.now() + timedelta(seconds=delay * random.uniform(0.5, 1))

    def _say(self, failed: FailedEvent, error: BaseException) -> None:
        logger.log(
            logging.WARNING if failed.next_attempt_at else logging.ERROR,
            "%s: %s %s failed, attempt %d: %s; %s",
            self.group,
            failed.event_name,
            failed.event_id,
            failed.attempts,
            _where(error),
            f"next attempt at {failed.next_attempt_at:%H:%M:%S}" if failed.next_attempt_at else "it is a dead letter",
        )


def _where(error: BaseException) -> str:
    """Return an error's type and place: what is said in it may quote the payload, which is not for the log."""
    if isinstance(error, UnreadableEvent):
        return str(error)
    origin = error
    while origin.__cause__ is not None:
        origin = origin.__cause__
    frames = traceback.extract_tb(error.__traceback__) + traceback.extract_tb(origin.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    places = [f" at {frame.filename}:{frame.lineno}" for frame in own or frames]
    return "".join([type(error).__name__, *places[-1:]])


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "its text can't be had"


def _storable(text: str) -> str:
    """Return text that every database takes: PostgreSQL has no NUL, and no encoding has surrogates."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
