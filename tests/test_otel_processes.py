"""Traces of events over two processes of two services, each with its own SDK, exporter and sampler."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT, process_environment

pytest.importorskip("opentelemetry.sdk")
from lightbus_django import otel

EVENTS = 40

SERVICE = """
import sys
import django
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

class ToFile(SpanExporter):
    def export(self, spans):
        with open(sys.argv[2], "a") as file:
            file.writelines(span.to_json(indent=None) + "\\n" for span in spans)
        return SpanExportResult.SUCCESS

django.setup()
from lightbus_django import otel
sampler = ParentBased(TraceIdRatioBased(float(sys.argv[3])))
provider = TracerProvider(sampler, Resource({"service.name": sys.argv[1]}))
provider.add_span_processor(SimpleSpanProcessor(ToFile()))
otel.instrument(provider)
"""

FIRE = """
from lightbus_django import fire, on_commit
for number in range(int(sys.argv[4])):
    with provider.get_tracer("own code").start_as_current_span("request"):
        call = fire if number % 2 else on_commit
        print(call("shop.order_placed", number=number).id)
"""

LISTEN = """
from django.core.management import call_command
call_command("lightbus_listen", "--burst", service_name=sys.argv[1], listener=["book"])
"""

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture
def run(lightbus_url, r, tmp_path):
    """Run code as a process of a service; return what it prints, and the spans that it exports."""

    def run(code, service, ratio, *arguments):
        exported = tmp_path / f"{service}.jsonl"
        exported.touch()
        done = subprocess.run(
            [sys.executable, "-c", SERVICE + code, service, exported, str(ratio), *map(str, arguments)],
            cwd=ROOT,
            env=process_environment(lightbus_url),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.split(), [json.loads(line) for line in exported.read_text().splitlines()]

    return run


def trace_of(span):
    return span["context"]["trace_id"]


def expected_trace(event_id):
    return f"0x{otel.trace_id_of(event_id):032x}"


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_each_event_is_one_trace_in_both_and_both_sample_the_same(run, ratio):
    ids, fired = run(FIRE, "shop", ratio, EVENTS)
    _, handled = run(LISTEN, "bookkeeping", ratio)
    spans = fired + handled
    assert {span["resource"]["attributes"]["service.name"] for span in fired} == {"shop"}
    assert {span["resource"]["attributes"]["service.name"] for span in handled} == {"bookkeeping"}
    sampled = []
    for event_id in ids:
        names = sorted(span["name"] for span in spans if trace_of(span) == expected_trace(event_id))
        assert names in ([], ["process shop.order_placed", "publish shop.order_placed"])
        sampled += [event_id] if names else []
    assert len(sampled) == EVENTS if ratio == 1.0 else 5 < len(sampled) < EVENTS - 5

    # No parent and no link leads to a span that neither has exported.
    exported = {(trace_of(span), span["context"]["span_id"]) for span in spans}
    assert len(exported) == len(spans)
    for span in spans:
        assert span["parent_id"] is None or (trace_of(span), span["parent_id"]) in exported
        assert {(link["context"]["trace_id"], link["context"]["span_id"]) for link in span["links"]} <= exported
    for span in handled:
        assert span["parent_id"] is None

    # The publication is linked with the trace of the request that fired the event, and the other way round.
    requests = {trace_of(span) for span in fired if span["name"] == "request"}
    publications = [span for span in fired if span["name"] == "publish shop.order_placed"]
    in_request = {trace_of(span) for span in publications if span["parent_id"] is not None}
    assert in_request == requests
    for span in publications:
        (linked,) = {link["context"]["trace_id"] for link in span["links"]} or {None}
        if ratio == 1.0:
            assert (linked in requests) == (span["parent_id"] is None)
            assert (linked in map(expected_trace, ids)) == (span["parent_id"] is not None)
