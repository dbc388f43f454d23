"""Traces of events, over two services, with the SDK's in-memory exporter."""

import pytest
from django.db import transaction

from lightbus_django import fire, listens_to, on_commit
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent
from tests.conftest import drain

pytest.importorskip("opentelemetry.sdk")
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from lightbus_django import otel

KEY = "shop.*:stream"

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners", "r")]


class Services:
    """Services with a tracer provider each, whose spans end in one place."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.ratio = 1.0
        self.providers = {}

    def enter(self, name):
        """Be this service from now on; return a tracer of its own code."""
        if name not in self.providers:
            sampler = ParentBased(TraceIdRatioBased(self.ratio))
            provider = TracerProvider(sampler, Resource({"service.name": name}), shutdown_on_exit=False)
            provider.add_span_processor(SimpleSpanProcessor(self.exporter))
            self.providers[name] = provider
        otel.instrument(self.providers[name])
        return self.providers[name].get_tracer("own code")

    @property
    def spans(self):
        """All spans that have ended: service and name."""
        return {
            (span.resource.attributes["service.name"], span.name): span for span in self.exporter.get_finished_spans()
        }


@pytest.fixture
def services():
    found = Services()
    yield found
    otel.uninstrument()
    for provider in found.providers.values():
        provider.shutdown()


def consume_as(name, consume, *, listener=None):
    drain(consume(listener, service_name=name))


def linked(span):
    return {link.context.span_id for link in span.links}


def trace_of(span):
    return span.context.trace_id


def check_no_phantoms(services):
    """Every parent and every link is a span that was exported."""
    finished = services.exporter.get_finished_spans()
    known = {(span.context.trace_id, span.context.span_id) for span in finished}
    assert len(known) == len(finished)
    for span in finished:
        referred = [link.context for link in span.links] + ([span.parent] if span.parent else [])
        assert {(each.trace_id, each.span_id) for each in referred} <= known


def test_all_services_handle_an_event_in_one_trace_linked_with_the_one_that_fired_it(services, consume, r):
    @listens_to("shop.order_placed", start="beginning")
    def record(event, number): ...

    with services.enter("shop").start_as_current_span("request") as request:
        event = fire("shop.order_placed", number=1)
    for name in "bookkeeping", "warehouse":
        services.enter(name)
        consume_as(name, consume)

    spans = services.spans
    assert set(spans) == {
        ("shop", "request"),
        ("shop", "publish shop.order_placed"),
        ("bookkeeping", "process shop.order_placed"),
        ("warehouse", "process shop.order_placed"),
    }
    published = [each for each in services.exporter.get_finished_spans() if each.name.startswith("publish")]
    (firing,) = [each for each in published if trace_of(each) == request.get_span_context().trace_id]
    (root,) = [each for each in published if each is not firing]
    assert firing.parent.span_id == request.get_span_context().span_id
    assert linked(firing) == {root.context.span_id}
    assert linked(root) == {firing.context.span_id}
    handled = [spans[name, "process shop.order_placed"] for name in ("bookkeeping", "warehouse")]
    for span in root, *handled:
        assert trace_of(span) == otel.trace_id_of(event.id)
        assert span.parent is None
    assert dict(handled[0].attributes) == {
        "messaging.system": "lightbus",
        "messaging.operation.type": "process",
        "messaging.destination.name": "shop.order_placed",
        "messaging.message.id": event.id,
        "messaging.consumer.group.name": "bookkeeping-record",
        "lightbus.listener": "record",
        "lightbus.attempt": 1,
    }
    check_no_phantoms(services)
    ((_, fields),) = r.xrange(KEY)
    assert set(fields) == {"id", "api_name", "event_name", "version", ":number"}


def test_what_a_handler_does_is_in_its_span(services, consume):
    tracer = services.enter("shop")

    @listens_to("shop.order_placed", start="beginning")
    def record(event, number):
        with tracer.start_as_current_span("work"):
            on_commit("shop.order_recorded", number=number)

    first = fire("shop.order_placed", number=1)
    consume_as("shop", consume)
    spans = services.spans
    handling, work = spans["shop", "process shop.order_placed"], spans["shop", "work"]
    assert work.parent.span_id == handling.context.span_id
    one, two = (each for each in services.exporter.get_finished_spans() if each.name == "publish shop.order_recorded")
    assert one.parent.span_id == handling.context.span_id
    assert trace_of(one) == trace_of(work) == otel.trace_id_of(first.id)
    assert two.parent is None
    assert linked(two) == {one.context.span_id}
    check_no_phantoms(services)
    assert not trace.get_current_span().get_span_context().is_valid


def test_an_async_handler_has_its_span_too(services, consume):
    tracer = services.enter("shop")

    @listens_to("shop.order_placed", start="beginning")
    async def record(event, number):
        with tracer.start_as_current_span("work"):
            pass

    fire("shop.order_placed", number=1)
    consume_as("shop", consume)
    spans = services.spans
    assert spans["shop", "work"].parent.span_id == spans["shop", "process shop.order_placed"].context.span_id


def test_what_is_rolled_back_has_no_span(services):
    services.enter("shop")
    with transaction.atomic():
        on_commit("shop.order_placed", number=1)
        transaction.set_rollback(True)
    assert services.spans == {}


def test_a_failure_is_an_error_without_its_text_and_a_retry_is_in_the_same_trace(services, consume):
    @listens_to("shop.order_placed", start="beginning")
    def record(event, number):
        raise ValueError(f"{number} is a secret")

    services.enter("shop")
    event = fire("shop.order_placed", number=1)
    consumer = consume(service_name="shop")
    drain(consumer)
    assert consumer.inbox.retry(FailedEvent.objects.get().next_attempt_at)
    tries = [span for span in services.exporter.get_finished_spans() if span.name.startswith("process")]
    assert [span.attributes["lightbus.attempt"] for span in tries] == [1, 2]
    for span in tries:
        assert trace_of(span) == otel.trace_id_of(event.id)
        assert span.status.status_code is trace.StatusCode.ERROR
        assert span.status.description == span.attributes["error.type"] == "ValueError"
        assert "secret" not in span.to_json()


def test_a_batch_is_a_trace_that_is_linked_with_those_of_its_events(services, consume):
    tracer = services.enter("shop")

    @listens_to("shop.order_placed", batch=True, start="beginning")
    def record(events):
        with tracer.start_as_current_span("work"):
            pass

    events = [fire("shop.order_placed", number=number) for number in range(3)]
    consume_as("shop", consume)
    spans = services.spans
    batch = spans["shop", "process record"]
    assert spans["shop", "work"].parent.span_id == batch.context.span_id
    assert batch.parent is None
    assert batch.attributes["messaging.batch.message_count"] == 3
    own = [span for span in services.exporter.get_finished_spans() if span.name == "process shop.order_placed"]
    assert [trace_of(span) for span in own] == [otel.trace_id_of(event.id) for event in events]
    assert linked(batch) == {span.context.span_id for span in own}
    assert [linked(span) for span in own] == [{batch.context.span_id}] * 3
    check_no_phantoms(services)


def test_all_services_sample_the_same_events(services, consume):
    @listens_to("shop.order_placed", start="beginning")
    def record(event, number): ...

    services.ratio = 0.5
    tracer, events = services.enter("shop"), []
    for number in range(60):
        with tracer.start_as_current_span("request"):
            events.append(fire("shop.order_placed", number=number))
    for name in "bookkeeping", "warehouse":
        services.enter(name)
        consume_as(name, consume)
    finished = services.exporter.get_finished_spans()
    counts = [sum(trace_of(span) == otel.trace_id_of(event.id) for span in finished) for event in events]
    assert set(counts) == {0, 3}
    assert 10 < counts.count(3) < 50
    check_no_phantoms(services)


def test_another_implementation_of_the_api_does_not_hinder_events(consume):
    handled = []

    @listens_to("shop.order_placed", start="beginning")
    def record(event, number):
        handled.append(number)

    otel.instrument(trace.NoOpTracerProvider())
    try:
        fire("shop.order_placed", number=1)
        consume_as("shop", consume)
    finally:
        otel.uninstrument()
    assert handled == [1]


def test_uninstrumented_there_are_no_spans(services, consume):
    @listens_to("shop.order_placed", start="beginning")
    def record(event, number): ...

    services.enter("shop")
    services.enter("shop")
    otel.uninstrument()
    fire("shop.order_placed", number=1)
    consume_as("shop", consume, listener=next(iter(registry)))
    assert services.spans == {}


def test_the_trace_id_is_a_hash_of_the_event_id():
    """A contract between all services, and all versions."""
    event_id = "01936750-f1a2-7c3e-9d41-5b0f6a7e8c21"
    assert format(otel.trace_id_of(event_id), "032x") == "b674b14874027e36099582a5e8e95733"
