"""`@listens_to`, and the listeners of this process."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime

from lightbus_django.database.connections import named_by_listeners
from lightbus_django.events.names import MAX_NAME_LENGTH, split_name
from lightbus_django.exceptions import ConfigurationError

from .arguments import path_of
from .listener import Handler, Listener

_STREAM_ID = re.compile(r"\d{1,20}(-\d{1,20})?")


class Registry:
    """The listeners of a process, in the order of their declaration."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._listeners)

    def add(self, listener: Listener) -> None:
        """Add a listener.

        Raises:
            ConfigurationError: another listener has its consumer group.
        """
        self._check_group(listener, "")
        self._listeners.append(listener)
        if listener.using:
            named_by_listeners[listener.using] += 1

    def check_groups(self, service_name: str) -> None:
        """Raise ConfigurationError if two listeners of the service have the same consumer group."""
        for listener in self:
            self._check_group(listener, service_name)

    def _check_group(self, listener: Listener, service_name: str) -> None:
        # In lower case, because to a database that ignores case the groups would be the same.
        group = listener.group(service_name).lower()
        for other in self:
            if other is not listener and other.group(service_name).lower() == group:
                raise ConfigurationError(
                    f"{other.path} and {listener.path} have the same consumer group "
                    f"({listener.consumer_group or listener.listener_name!r}), so each would get only some of the "
                    f"events. Give one of them another listener_name."
                )

    def select(self, listener_names: Collection[str] | None = None) -> list[Listener]:
        """Return the listeners with these names; without names, return all of them.

        Raises:
            ConfigurationError: there is no such listener, or a handler can't be called with an event.
        """
        known = {listener.listener_name for listener in self}
        for name in listener_names or ():
            if name not in known:
                raise ConfigurationError(f"There is no listener {name!r}. Known: {', '.join(sorted(known)) or 'none'}.")
        listeners = [item for item in self if not listener_names or item.listener_name in listener_names]
        for listener in listeners:
            listener.check()
        return listeners

    def remove(self, listener: Listener) -> None:
        """Remove a listener that was added."""
        self._listeners.remove(listener)
        if listener.using:
            named_by_listeners[listener.using] -= 1


registry = Registry()


def listens_to(
    events: str | Iterable[str],
    *,
    listener_name: str | None = None,
    consumer_group: str | None = None,
    idempotent: bool = True,
    batch: bool = False,
    using: str | None = None,
    start: str | datetime = "new",
    defer_commits: bool = True,
) -> Callable[[Handler], Handler]:
    """Register a callable as the handler of one or more events, and return it unchanged.

    The handler is called as `handler(event, **payload)`, with the EventMessage and the payload keys that it
    names (all of them if it has `**kwargs`), converted as its annotations say.

    Args:
        events: one or more event names, such as "competitor_prices.changed".
        listener_name: the name of this listener, unique in the service; by default the name of the function.
        consumer_group: the full name of the consumer group, instead of
            `{service_name}-{listener_name}` with hyphens for underscores.
        idempotent: commit an idempotency key together with the handler's writes, so that an event
            has its effects in the database once. False gives that up for speed.
        batch: call `handler(events)` with a list of events, for instance for one bulk_create: up to BATCH_SIZE of
            each stream that the listener reads. Payloads are not converted. If the handler raises, its writes are
            rolled back and the list is split until the event that it can't handle is found.
        using: alias of the database that the handler writes to. The idempotency keys are kept there too.
        start: where a new consumer group starts: "new", "beginning", a datetime (events from then on) or a
            stream id (events after it).
        defer_commits: on PostgreSQL, let the commits of several events wait for the disk together, before any of
            them is acknowledged. With False each commit waits for itself. The setting DEFER_COMMITS does the same
            for all listeners.

    Raises:
        ConfigurationError: an argument is not valid, or another listener has the same consumer group.
        InvalidEventName: an event name is not `api_name.event`.
    """
    if callable(events):
        raise ConfigurationError('@listens_to takes event names: @listens_to("competitor_prices.changed").')
    names = (events,) if isinstance(events, str) else tuple(dict.fromkeys(events))
    if not names:
        raise ConfigurationError("@listens_to needs at least one event name.")
    for name in names:
        split_name(name)
    if isinstance(start, str) and start not in ("new", "beginning") and not _STREAM_ID.fullmatch(start):
        raise ConfigurationError(
            f"start={start!r} is not 'new', 'beginning', a datetime or a stream id such as '1700000000000-0'."
        )
    for argument in (listener_name, consumer_group):
        if argument is not None and not (
            argument.strip() and argument.isprintable() and len(argument) <= MAX_NAME_LENGTH // 2
        ):
            raise ConfigurationError(
                f"{argument!r} is not a valid name for a listener or its consumer group: use up to "
                f"{MAX_NAME_LENGTH // 2} printable characters."
            )

    def register(handler: Handler) -> Handler:
        if not callable(handler):
            raise ConfigurationError(f"{handler!r} can't be called, so it can't handle {', '.join(names)}.")
        name = listener_name or str(getattr(handler, "__name__", ""))
        if not listener_name and not name.isidentifier():
            raise ConfigurationError(
                f"The handler {path_of(handler)} is a {type(handler).__name__} without a name: pass listener_name=…"
            )
        registry.add(
            Listener(
                handler=handler,
                events=names,
                listener_name=name,
                consumer_group=consumer_group,
                idempotent=idempotent,
                batch=batch,
                using=using,
                start=start,
                defer_commits=defer_commits,
            )
        )
        return handler

    return register
