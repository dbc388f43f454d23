"""Metrics for Prometheus, as `lightbus_listen --metrics-port` serves them. Needs the extra `metrics`."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, NamedTuple

from django.db import Error as DatabaseError
from django.db import connections
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lightbus_django.exceptions import LightbusError
from lightbus_django.listening.listener import Listener
from lightbus_django.signals import event_dead_lettered, event_failed, event_handled, events_lost

from .report import Status
from .status import read_status

logger = logging.getLogger("lightbus_django")

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
"""Upper bounds of the histograms' buckets."""

PATIENCE = 5.0
"""Seconds that a scrape waits for one before it, which a server keeps waiting, before it leaves out the gauges."""


class Gauge(NamedTuple):
    """A gauge of the status."""

    name: str
    text: str
    read: Callable[[Any], float]
    """Returns its value, of a part of the status."""


OF_PROCESS = (
    Gauge("lightbus_process_healthy", "Whether this process has a heartbeat and no problems: 1 or 0.", float),
)
OF_BACKLOG = (
    Gauge(
        "lightbus_waiting_events", "Events that the listener wants and that no process has read.", attrgetter("waiting")
    ),
    Gauge("lightbus_pending_events", "Events that processes have read and not acknowledged.", attrgetter("in_hand")),
    Gauge(
        "lightbus_oldest_event_age_seconds",
        "Age of the listener's oldest event that is waiting or pending; 0 if there is none.",
        attrgetter("seconds_behind"),
    ),
    Gauge("lightbus_listener_processes", "Processes that run the listener.", lambda each: len(each.processes)),
    Gauge(
        "lightbus_listener_paused",
        "Whether the listener is paused: 1 or 0.",
        lambda each: each.paused_at is not None,
    ),
)
OF_FAILURES = (
    Gauge("lightbus_retrying_events", "Failed events that will be tried again.", attrgetter("retrying")),
    Gauge("lightbus_dead_letters", "Failed events that wait for someone's decision.", attrgetter("dead_letters")),
)
OF_OUTBOX = (
    Gauge(
        "lightbus_outbox_unpublished",
        "Events in the outbox that are not marked as published.",
        attrgetter("unpublished"),
    ),
    Gauge("lightbus_outbox_refused", "Events in the outbox that could not be published.", attrgetter("refused")),
    Gauge(
        "lightbus_outbox_oldest_age_seconds",
        "Age of the oldest event in the outbox that is not marked as published; 0 if there is none.",
        attrgetter("seconds_behind"),
    ),
)


class ProcessMetrics:
    """Counters and histograms of what the listeners of this process do, from the signals."""

    def __init__(self, listeners: Iterable[Listener], registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["listener"], registry=registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(name, text, ["listener"], registry=registry, buckets=SECONDS)

        self._counts = {
            event_handled: counter("lightbus_events_handled", "Events that this process has handled."),
            event_failed: counter("lightbus_events_failed", "Attempts at events that have failed in this process."),
            event_dead_lettered: counter(
                "lightbus_events_dead_lettered", "Events that have become dead letters in this process."
            ),
            events_lost: counter(
                "lightbus_events_lost", "Events that were removed before they were handled, as this process found."
            ),
        }
        self._latency = histogram(
            "lightbus_event_latency_seconds", "From the publication of an event until it was handled."
        )
        self._duration = histogram("lightbus_handler_duration_seconds", "How long handlers ran that succeeded.")
        for metric in (*self._counts.values(), self._latency, self._duration):
            for listener in listeners:
                metric.labels(listener.listener_name)  # so that each series starts at 0

    def connect(self) -> None:
        """Begin to count."""
        for signal in self._counts:
            signal.connect(self._count)
        event_handled.connect(self._observe)

    def disconnect(self) -> None:
        """End to count."""
        for signal in self._counts:
            signal.disconnect(self._count)
        event_handled.disconnect(self._observe)

    def _count(self, signal: object, listener_name: str, count: int = 1, **kwargs: object) -> None:
        self._counts[signal].labels(listener_name).inc(count)  # type: ignore[index]

    def _observe(self, listener_name: str, latency: float, seconds: float, **kwargs: object) -> None:
        self._latency.labels(listener_name).observe(latency)
        self._duration.labels(listener_name).observe(seconds)


class StatusMetrics(Collector):
    """Gauges of the whole service, read from Redis and the databases with each scrape."""

    def __init__(self, service_name: str, process_name: str) -> None:
        self._service_name = service_name
        self._process_name = process_name
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        status = self._read()
        is_healthy = status is not None and _is_healthy(status, self._process_name)
        yield from _gauges(OF_PROCESS, "process", {self._process_name: is_healthy})
        if status is not None:
            listeners = {each.name: each for each in status.listeners}
            on_bus = {name: each for name, each in listeners.items() if each.waiting is not None}
            yield from _gauges(OF_BACKLOG, "listener", on_bus)
            outboxes = {each.database: each for each in status.outboxes}
            recorded = {name: each for name, each in listeners.items() if each.database in outboxes}
            yield from _gauges(OF_FAILURES, "listener", recorded)
            yield from _gauges(OF_OUTBOX, "database", outboxes)

    def _read(self) -> Status | None:
        """Return the status; None if it can't be read."""
        if not self._lock.acquire(timeout=PATIENCE):
            return None
        try:
            return read_status(service_name=self._service_name)
        except (LightbusError, DatabaseError) as error:
            logger.warning("metrics: the status can't be read: %s", error)
            return None
        finally:
            connections.close_all()  # each scrape has a thread of its own
            self._lock.release()


def _is_healthy(status: Status, process_name: str) -> bool:
    processes = [each for each in status.processes if each.name == process_name]
    return bool(processes) and all(each.is_healthy for each in processes)


def _gauges(of: Iterable[Gauge], label: str, values: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield gauges, with a series for each of the values by its name."""
    for name, text, read in of:
        family = GaugeMetricFamily(name, text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], float(read(value)))
        yield family


@contextmanager
def serving(port: int, listeners: Iterable[Listener], *, service_name: str, process_name: str) -> Iterator[int]:
    """Serve the metrics of this process during the block; yield the port.

    Args:
        port: the port to listen at, on all interfaces; 0 for any that is free.
        listeners: those that this process runs.

    Raises:
        OSError: the port is taken, for instance.
    """
    registry = CollectorRegistry()
    metrics = ProcessMetrics(listeners, registry)
    registry.register(StatusMetrics(service_name, process_name))
    server, thread = start_http_server(port, registry=registry)
    metrics.connect()
    try:
        yield server.server_port
    finally:
        metrics.disconnect()
        server.shutdown()
        server.server_close()
        thread.join()
