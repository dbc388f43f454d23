"""One tree of errors; whatever this package raises on purpose is a LightbusError."""


class LightbusError(Exception):
    """Base of every error that lightbus_django raises."""


class ConfigurationError(LightbusError):
    """A setting or a listener is declared in a way that cannot work."""


class InvalidEvent(LightbusError):
    """An event that cannot be fired as it is: nothing was published and no row was written."""


class InvalidEventName(InvalidEvent):
    """The event name is not `api_name.event`."""


class InvalidPayload(InvalidEvent):
    """A payload key or value has no form on the bus."""


class UnreadableEvent(LightbusError):
    """An event that no retry can mend: it can't be read, or does not fit its handler."""


class TransactionEnded(LightbusError):
    """A handler ended its transaction itself, so some of its effects may be in the database."""


class BusError(LightbusError):
    """Redis answered with an error."""


class BusForbidden(BusError):
    """Redis denies its user what is needed."""


class GroupMissing(BusError):
    """The stream or the consumer group that was read from is gone."""


class BusUnavailable(BusError):
    """Redis can't be reached, or can't serve for now."""


class BusUnsupported(BusUnavailable):
    """What answers at the address can't do what is needed, and waiting does not help."""


class BusFull(BusUnavailable):
    """Redis has no memory left for anything new; what it holds can be read and handled."""


class DatabaseUnavailable(LightbusError):
    """The database can't be reached, or can't serve for now; the work may be tried again."""


class SequenceBehind(LightbusError):
    """A table's sequence gives out ids that rows have already, as after a restore; the message says what mends it."""


class KeyLocked(DatabaseUnavailable):
    """Another transaction, which has not ended, has an event's idempotency key."""


class EventContended(DatabaseUnavailable):
    """The database answers, but one event's transaction does not get through for now."""
