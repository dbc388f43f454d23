"""The exceptions of this package, all derived from LightbusError."""


class LightbusError(Exception):
    """The base class of all exceptions that lightbus_django raises."""


class ConfigurationError(LightbusError):
    """A setting or a listener is misconfigured."""


class InvalidEvent(LightbusError):
    """The event can't be fired; nothing was published or written to the outbox."""


class InvalidEventName(InvalidEvent):
    """The event name doesn't have the form `api_name.event`."""


class InvalidPayload(InvalidEvent):
    """A payload key or value can't be encoded."""


class UnreadableEvent(LightbusError):
    """The event can't be decoded or doesn't fit its handler, so a retry would not help."""


class TransactionEnded(LightbusError):
    """A handler ended its own transaction, so some of its effects may be committed."""


class BusError(LightbusError):
    """Redis returned an error."""


class BusForbidden(BusError):
    """The Redis user lacks a permission."""


class GroupMissing(BusError):
    """The stream or the consumer group no longer exists."""


class NotAStream(BusError):
    """The key of a stream holds something else."""


class BusUnavailable(BusError):
    """Redis can't be reached, or can't serve requests at the moment."""


class NodeUnavailable(BusUnavailable):
    """One node of a Redis Cluster can't be reached or can't serve requests at the moment; others may."""

    answers = False
    """Whether the node answers, with a refusal."""


class NodeDown(NodeUnavailable):
    """The node is known to be down, and was not tried."""


class SlotMoved(NodeUnavailable):
    """The keys have moved to another node of a Redis Cluster: ask again, and that one is asked."""


class BusUnsupported(BusUnavailable):
    """The server at the address lacks a required feature; waiting won't help."""


class BusFull(BusUnavailable):
    """Redis is out of memory; events that it holds can still be read and handled."""


class DatabaseUnavailable(LightbusError):
    """The database can't be reached, or can't serve requests at the moment; the work can be retried."""


class SequenceBehind(LightbusError):
    """A table's sequence is behind its rows, as after a restore; the message says how to fix it."""


class KeyLocked(DatabaseUnavailable):
    """An event's idempotency key is locked by another open transaction."""


class EventContended(DatabaseUnavailable):
    """The database answers, but one event's transaction keeps failing, for instance with deadlocks."""
