"""OpenTelemetry: a trace for each event, with its publication and its handling in all services. Needs the extra `otel`.

Nothing is added to the event on the bus, because the id of its trace is computed from the id of the event. All spans in
that trace are roots, since no service knows the span ids of another one.
"""

import hashlib
from contextvars import ContextVar
from typing import Any

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, TracerProvider

from .events.message import EventMessage
from .listening.listener import Listener
from .listening.wrappers import Call, wrappers
from .signals import event_published

__all__ = ["instrument", "trace_id_of", "uninstrument"]

_trace_id: ContextVar[int | None] = ContextVar("lightbus_trace_id", default=None)
"""The id of the trace that the next root span of our tracer starts."""


class _Instrumentation:
    def __init__(self) -> None:
        self.provider: TracerProvider | None = None
        """None for the global one."""


_instrumentation = _Instrumentation()


def instrument(tracer_provider: TracerProvider | None = None) -> None:
    """Make spans in this process for the events that it publishes and handles.

    Args:
        tracer_provider: makes the spans; by default the global one, which may be set later.
    """
    uninstrument()
    _instrumentation.provider = tracer_provider
    event_published.connect(_published)
    wrappers.append(_handle)


def uninstrument() -> None:
    """Make no more spans."""
    event_published.disconnect(_published)
    if _handle in wrappers:
        wrappers.remove(_handle)


def trace_id_of(event_id: str) -> int:
    """Return the id of an event's trace; `format(…, "032x")` is how it is displayed.

    A hash, because samplers expect the bits of a trace id to be random, and those of an event id begin with the time.
    """
    digest = hashlib.sha256(b"lightbus:" + event_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:16], "big") or 1


# --- What happens to events ---------------------------------------------------------------------


def _published(event_name: str, event_id: str, **kwargs: object) -> None:
    """Make a span in the event's trace, and one in the current trace if there is one, linked with each other."""
    tracer = _tracer()
    arguments: dict[str, Any] = {
        "name": f"publish {event_name}",
        "kind": SpanKind.PRODUCER,
        "attributes": {**_attributes(event_name, event_id), "messaging.operation.type": "send"},
    }
    span = _start_root(tracer, event_id, **arguments)
    if trace.get_current_span().get_span_context().is_valid:
        firing = tracer.start_span(links=_links(span), **arguments)
        if firing.is_recording():
            span.add_link(firing.get_span_context())
        firing.end()
    span.end()


def _handle(call: Call, listener: Listener, group: str, argument: EventMessage | list[EventMessage]) -> None:
    """Call a handler in a span of the event's trace, or in a span that is linked with those of its batch."""
    messages = [argument] if isinstance(argument, EventMessage) else argument
    tracer = _tracer()
    common = {
        "messaging.system": "lightbus",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": group,
        "lightbus.listener": listener.listener_name,
    }
    spans = [
        _start_root(
            tracer,
            message.id,
            name=f"process {message.name}",
            kind=SpanKind.CONSUMER,
            attributes={**common, **_attributes(message.name, message.id), "lightbus.attempt": message.attempt},
        )
        for message in messages
    ]
    current = spans[0]
    if len(spans) > 1:
        attributes: dict[str, Any] = {**common, "messaging.batch.message_count": len(messages)}
        name = f"process {listener.listener_name}"
        current = tracer.start_span(name, Context(), SpanKind.CONSUMER, attributes, _links(*spans))
        if current.is_recording():
            for span in spans:
                span.add_link(current.get_span_context())
        spans.append(current)
    # Not detached: the commit hooks of the handler are to see it, and the context of the event is dropped after them.
    context.attach(trace.set_span_in_context(current))
    try:
        call(argument)
    except BaseException as error:
        for span in spans:
            # Without the text of the error, which may quote the payload.
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(Status(StatusCode.ERROR, type(error).__qualname__))
        raise
    finally:
        for span in spans:
            span.end()


def _links(*spans: Span) -> list[Link]:
    """Return links to the spans that are sampled. The others would lead nowhere."""
    return [Link(span.get_span_context()) for span in spans if span.is_recording()]


def _attributes(event_name: str, event_id: str) -> dict[str, Any]:
    return {
        "messaging.system": "lightbus",
        "messaging.destination.name": event_name,
        "messaging.message.id": event_id,
    }


# --- Root spans in a given trace ----------------------------------------------------------------


def _start_root(tracer: Tracer, event_id: str, **arguments: Any) -> Span:
    """Start a span without a parent in the trace of an event."""
    token = _trace_id.set(trace_id_of(event_id))
    try:
        return tracer.start_span(context=Context(), **arguments)
    finally:
        _trace_id.reset(token)


class _TraceIds:
    """The id generator of our tracer: it starts the trace that is asked for, or any."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def generate_trace_id(self) -> int:
        asked_for = _trace_id.get()
        return int(self._generator.generate_trace_id()) if asked_for is None else asked_for

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)


def _tracer() -> Tracer:
    """Return our tracer, with our id generator.

    The API can't start a root span in a given trace. The SDK's tracers have a generator of ids, and no one else uses
    ours. With another implementation, which has none there, each span begins a trace of its own.
    """
    provider = _instrumentation.provider or trace.get_tracer_provider()
    tracer: Any = provider.get_tracer("lightbus_django")
    generator = getattr(tracer, "id_generator", None)
    if hasattr(generator, "generate_trace_id") and not isinstance(generator, _TraceIds):
        tracer.id_generator = _TraceIds(generator)
    return tracer  # type: ignore[no-any-return]
