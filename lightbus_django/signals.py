"""Signals of Django that say what happens to events. They are public: names, senders and arguments are a contract.

Connect receivers in an app's `ready()`, and let them take `**kwargs`, because later versions may add arguments:

    @receiver(event_failed, sender=update_db)
    def report(sender, listener_name, event_id, exception, **kwargs): ...

A signal is sent after the fact, outside the transaction of the event, in the process and thread where it happened. What
a receiver raises is logged, and harms neither the event nor other receivers. A process that dies right after a commit
sends no signal for it, so signals are for monitoring, and not for work that has to be done: listen to events for that.

The sender of signals about a listener is its handler, the function with `@listens_to`. They have the arguments

- `listener_name`, `consumer_group`: texts.

Those about an event have also

- `event_name`, `event_id`: texts. An id that is not a UUID may be replaced by the key that stands for it in the tables.

No signal has the payload. Errors have their exception, whose text may quote it.
"""

import logging
from typing import Any

from django.dispatch import Signal

__all__ = ["event_dead_lettered", "event_failed", "event_handled", "event_published", "events_lost", "listener_late"]

logger = logging.getLogger("lightbus_django")

event_published = Signal()
"""An event is in its stream. The sender is `OutboxEvent` if it was in the outbox, otherwise `EventMessage`.

If `fire()` is called in a transaction, receivers run in it too; a query of theirs that fails may break it.

Arguments:
    event_name, event_id: as above.
    is_repeated: whether the event had been published before, and was published again on request.
"""

event_handled = Signal()
"""A handler has handled an event, and this is committed: at a retry when its transaction has ended, otherwise when the
commit is proved to be durable, right before the event is acknowledged. It is not sent for an event that turns out to be
handled already.

Arguments:
    listener_name, consumer_group, event_name, event_id: as above.
    attempt: the number of this attempt, from 1.
    seconds: how long the handler ran; that of all events of its call if it is a batch handler.
    latency: seconds since the event was published.
"""

event_failed = Signal()
"""An attempt at an event has failed, and the failed event is committed. It is sent when `event_handled` would be.

Arguments:
    listener_name, consumer_group, event_name, event_id: as above.
    attempt: the number of this attempt, from 1.
    seconds: how long the handler ran; None if it was not called.
    exception: what the handler raised, with its traceback. UnreadableEvent, without a traceback, if the event can't be
        read, doesn't fit the handler, or has killed its process.
    next_attempt_at: an aware datetime; None if the event is a dead letter.
"""

event_dead_lettered = Signal()
"""An event is a dead letter: it is not tried again until someone asks for it. It is sent after `event_failed`.

`lightbus_retire`, which makes dead letters of a whole group, sends no signals.

Arguments:
    listener_name, consumer_group, event_name, event_id, attempt, seconds, exception: as of `event_failed`.
"""

events_lost = Signal()
"""Events were removed from a stream before a listener handled them. Each process of the listener sends what it finds.

Arguments:
    listener_name, consumer_group: as above.
    stream: the key of the stream.
    count: the number of events.
    stream_id: if it is known, the stream id of the only event; otherwise an empty text.
"""

listener_late = Signal()
"""The oldest event of a listener was published more than a minute ago. Each process of the listener looks once a
minute, and sends this for each stream with such an event. Not sent while the listener is paused.

Arguments:
    listener_name, consumer_group: as above.
    stream: the key of the stream.
    seconds: the age of the oldest event that is waiting or pending.
    waiting: how many events of the stream the listener wants and has not read; an estimate if they are thousands.
    pending: how many it has read and not acknowledged.
"""


def announce(signal: Signal, sender: Any, **arguments: Any) -> None:
    """Send a signal, and log what receivers raise."""
    if not signal.receivers:
        return
    try:
        replies = signal.send_robust(sender, **arguments)
    except KeyboardInterrupt:
        raise
    # SystemExit of a receiver, for instance, or an async receiver in a thread in which an event loop is running.
    except BaseException as error:
        logger.error("signal %s: receivers could not be called: %s", _name_of(signal), type(error).__name__)
        return
    for receiver, reply in replies:
        if isinstance(reply, Exception):
            path = f"{receiver.__module__}.{getattr(receiver, '__qualname__', type(receiver).__qualname__)}"
            logger.error("signal %s: the receiver %s raised %s", _name_of(signal), path, type(reply).__name__)


def _name_of(signal: Signal) -> str:
    return next(name for name in __all__ if globals()[name] is signal)
