"""A listener: a handler, the events it wants, and its options."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import Any, TypeVar

from asgiref.sync import iscoroutinefunction
from django.utils import timezone

from lightbus_django.events.codec import Fields
from lightbus_django.events.message import EventMessage
from lightbus_django.events.names import split_name
from lightbus_django.exceptions import ConfigurationError

from . import event_loop
from .arguments import Arguments, check_takes_list, function_of, path_of

Handler = TypeVar("Handler", bound=Callable[..., Any])


@dataclass(frozen=True, eq=False)
class Listener:
    """A handler, the events it wants, and its options, as `@listens_to` takes them."""

    handler: Callable[..., Any]
    events: tuple[str, ...]
    listener_name: str
    consumer_group: str | None = None
    idempotent: bool = True
    batch: bool = False
    using: str | None = None
    start: str | datetime = "new"
    defer_commits: bool = True

    def group(self, service_name: str) -> str:
        """Return the consumer group of this listener in a service."""
        return self.consumer_group or f"{service_name}-{self.listener_name}".replace("_", "-")

    @property
    def path(self) -> str:
        """The dotted path of the handler, for log lines and error messages."""
        return path_of(self.handler)

    @property
    def start_id(self) -> str:
        """The stream id after which a new consumer group starts."""
        if isinstance(self.start, datetime):
            start = self.start if timezone.is_aware(self.start) else timezone.make_aware(self.start)
            milliseconds = (start - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
            return f"{milliseconds - 1}-{2**64 - 1}" if milliseconds > 0 else "0"
        return {"new": "$", "beginning": "0"}.get(self.start, self.start)

    def wants(self, fields: Fields) -> bool:
        """Whether a stream entry is for this listener. An entry without an event name may be."""
        api_name, event_name = fields.get(b"api_name"), fields.get(b"event_name")
        return not api_name or not event_name or (api_name, event_name) in self._wanted

    @cached_property
    def _wanted(self) -> frozenset[tuple[bytes, ...]]:
        return frozenset(tuple(part.encode() for part in split_name(event)) for event in self.events)

    @cached_property
    def _arguments(self) -> Arguments:
        return Arguments(self.handler)

    def call(self, message: EventMessage) -> None:
        """Call the handler with an event.

        Raises:
            UnreadableEvent: the payload does not fit the handler's arguments.
            Exception: any error that the handler raises.
        """
        arguments = self._arguments.read(message.payload)
        self._check_result(self._call(message, **arguments))

    def check_arguments(self, payload: dict[str, Any]) -> None:
        """Raise UnreadableEvent if a payload does not fit the handler's arguments."""
        self._arguments.read(payload)

    def call_with(self, messages: list[EventMessage]) -> None:
        """Call a batch handler with a list of events."""
        self._check_result(self._call(messages))

    def call_one(self, message: EventMessage) -> None:
        """Call the handler, which may be a batch handler, with one event."""
        if self.batch:
            self.call_with([message])
        else:
            self.call(message)

    def _check_result(self, result: object) -> None:
        if result is None:
            return
        if inspect.iscoroutine(result):
            result.close()
        if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise TypeError(f"the handler {self.path} returned a {type(result).__name__}, which is never run")

    @cached_property
    def _call(self) -> Callable[..., Any]:
        if not (iscoroutinefunction(self.handler) or iscoroutinefunction(function_of(self.handler))):
            return self.handler
        return lambda *args, **kwargs: event_loop.run(partial(self.handler, *args, **kwargs))

    def check(self) -> None:
        """Raise ConfigurationError if the handler can't be called with an event."""
        function = function_of(self.handler)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(f"The handler {self.path} is a generator, so calling it would not run it.")
        if self.batch:
            check_takes_list(self.handler)
        else:
            self._arguments  # noqa: B018
