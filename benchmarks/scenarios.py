"""What is compared with what. A scenario is a table: its subjects are the rows, one of them is the reference."""

from .results import Target
from .scenario import SMOKE_EVENTS, Competitor, Scenario, Subject

BOTH = ("postgres", "sqlite")
WATCHED = {"settle": 3.0, "seconds": 20.0}
BARE_HANDLER = {"handler": "nothing", "idempotent": False}

CONSUMING = (
    Scenario(
        name="consume",
        title="Consuming without an inbox (`idempotent=False`), a handler that does nothing",
        events=200_000,
        subjects=(
            Subject("ours", "lightbus_django", "consuming.ours", {"idempotent": False}),
            Subject("r", "(r) redis-py XREADGROUP COUNT 100, one XACK a batch, msgspec", "consuming.bare"),
            Subject("held", "redis-py's connection, XACK with the next read, flat replies, msgspec", "consuming.held"),
            Subject("json", "(r) with the standard library's json", "consuming.bare_with_json"),
            Subject("count", "(r) with COUNT 10", "consuming.bare", {"count": 10, "events": 100_000}),
            Subject("xack", "(r) with an XACK for each event", "consuming.bare", {"xack_each": True, "events": 50_000}),
        ),
        reference="r",
        targets=(Target(at_least=0.9),),
    ),
    Scenario(
        name="inbox",
        title="Consuming with the inbox, a handler that inserts a row",
        events=20_000,
        subjects=(
            Subject("ours", "lightbus_django", "consuming.ours", {"handler": "insert"}),
            Subject("b", "(b) one transaction an event: key, row", "handling.transaction_an_event", {"events": 10_000}),
            Subject("d", "(d) one transaction for 100: keys in bulk, rows one by one", "handling.transaction_a_batch"),
        ),
        reference="b",
        targets=(
            Target(at_least=1.6, database="postgres"),
            Target(at_least=4.5, database="postgres-slow"),
            Target(at_least=1.0, database="sqlite"),
            Target(at_least=0.9, database="mariadb"),
        ),
        databases=("postgres", "postgres-slow", "sqlite", "mariadb"),
    ),
    Scenario(
        name="batch",
        title="Consuming with the inbox, a batch handler that inserts its rows in bulk",
        events=100_000,
        subjects=(
            Subject("ours", "lightbus_django", "consuming.ours", {"handler": "insert_all", "batch": True}),
            Subject("e", "(e) one transaction for 100: keys in bulk, rows in bulk", "handling.bulk"),
        ),
        reference="e",
        targets=(Target(at_least=1.0),),
        databases=BOTH,
    ),
)

FIRING = (
    Scenario(
        name="fire",
        title="Firing events one at a time, without a database",
        events=30_000,
        subjects=(
            Subject("ours", "lightbus_django: fire", "firing.ours"),
            Subject("xadd", "redis-py's xadd, msgspec", "firing.xadd"),
        ),
        reference="xadd",
        targets=(Target(at_least=0.9),),
    ),
    Scenario(
        name="fire-many",
        title="Firing 100 events at a time, without a database",
        events=100_000,
        subjects=(
            Subject("ours", "lightbus_django: fire_many", "firing.ours_many"),
            Subject("pipeline", "redis-py's pipeline of 100 XADDs, msgspec", "firing.pipeline"),
        ),
        reference="pipeline",
        targets=(Target(at_least=0.9),),
    ),
    Scenario(
        name="on-commit",
        title="Firing in a transaction that inserts a row",
        events=10_000,
        subjects=(
            Subject("ours", "lightbus_django: on_commit", "committing.ours"),
            Subject("h", "(h) outbox row, XADD, rows marked 1,000 at a time", "committing.marked_in_bulk"),
            Subject("g", "(g) outbox row, XADD, row deleted in a second transaction", "committing.row_deleted"),
            Subject("f'", "(f') XADD after the commit, which loses events", "committing.xadd_after_commit"),
            Subject("f", "(f) the row alone, no event", "committing.row_alone"),
        ),
        reference="h",
        targets=(Target(at_least=0.95),),
        databases=BOTH,
    ),
    Scenario(
        name="relay",
        title="Publishing rows that were left in the outbox",
        events=100_000,
        subjects=(
            Subject("ours", "lightbus_django: one relay", "relaying.ours"),
            Subject("hand", "1,000 rows read, a pipeline of XADDs, rows marked in bulk", "relaying.by_hand"),
        ),
        reference="hand",
        targets=(Target(at_least=15_000, kind="value", database="postgres"),),
        databases=BOTH,
    ),
)

LATENCY = (
    Scenario(
        name="latency",
        title="From `fire` to the first line of the handler, an event every 2 to 6 ms",
        events=2_000,
        subjects=(
            Subject("ours", "lightbus_django", "latency.ours"),
            Subject("bare", "redis-py: xadd, and a blocking XREADGROUP", "latency.bare"),
        ),
        reference="bare",
        measures=("p50", "p99"),
        targets=(Target(measure="p50", at_most=1.3), Target(measure="p99", at_most=2.0)),
        smoke={"events": 50},
    ),
    Scenario(
        name="latency-listeners",
        title="The same in a worker with so many listeners, each of an API of its own",
        events=2_000,
        subjects=(
            *(Subject(f"{count}", f"listeners: {count}", "latency.worker", {"listeners": count}) for count in (1, 100)),
            Subject("bare", "redis-py: xadd, and a blocking XREADGROUP", "latency.bare"),
        ),
        reference="bare",
        measures=("p50", "p99"),
        targets=(
            Target(subject="1", measure="p50", at_most=1.3),
            Target(subject="1", measure="p99", at_most=2.0),
            Target(subject="100", measure="p50", at_most=2.0),
            Target(subject="100", measure="p99", at_most=3.0),
        ),
        smoke={"events": 50, "listeners": 10},
    ),
)

GROWTH = (
    Scenario(
        name="growth-backlog",
        title="Cost of an event with so many waiting, `idempotent=False`",
        events=100_000,
        subjects=tuple(
            Subject(f"{count:,}", f"a backlog of {count:,}", "growing.backlog", {"backlog": count})
            for count in (1_000, 10_000, 100_000, 1_000_000)
        ),
        reference="1,000",
        measures=("cost", "cpu_cost"),
        targets=tuple(
            Target(subject=subject, measure="cost", at_most=1.1) for subject in ("10,000", "100,000", "1,000,000")
        ),
        smoke={"events": SMOKE_EVENTS, "backlog": 125},
    ),
    Scenario(
        name="growth-inbox",
        title="Cost of an event with so many keys in the inbox, a handler that does nothing",
        events=50_000,
        subjects=tuple(
            Subject(f"{count:,}", f"{count:,} keys", "growing.inbox", {"rows": count})
            for count in (0, 1_000_000, 5_000_000)
        ),
        reference="0",
        measures=("cost", "cpu_cost"),
        targets=tuple(Target(subject=subject, measure="cost", at_most=1.15) for subject in ("1,000,000", "5,000,000")),
        databases=("postgres",),
        smoke={"events": SMOKE_EVENTS, "rows": 100},
    ),
    Scenario(
        name="growth-pending",
        title="What a process left that died, `idempotent=False`",
        events=100_000,
        subjects=(
            Subject("ours", "reclaimed", "growing.pending", {"died": True, "idempotent": False}),
            Subject("new", "the same events, new", "growing.pending", {"died": False, "idempotent": False}),
        ),
        reference="new",
        targets=(Target(at_least=0.7),),
    ),
    Scenario(
        name="growth-pending-inbox",
        title="What a process left that died, with the inbox and a handler that inserts a row",
        events=20_000,
        subjects=(
            Subject("ours", "reclaimed", "growing.pending", {"died": True, "handler": "insert"}),
            Subject("new", "the same events, new", "growing.pending", {"died": False, "handler": "insert"}),
        ),
        reference="new",
        targets=(Target(at_least=0.7),),
        databases=BOTH,
    ),
)

PARTITIONS = (
    Scenario(
        name="partitions-inbox",
        title="Consuming with the inbox in partitioned tables, a handler that inserts a row",
        events=20_000,
        subjects=(
            Subject("ours", "30 partitions", "partitioned.inbox", {"handler": "insert", "partitions": True}),
            Subject("plain", "plain tables", "partitioned.inbox", {"handler": "insert", "partitions": False}),
        ),
        reference="plain",
        targets=(Target(at_least=0.95),),
        databases=("postgres",),
    ),
    Scenario(
        name="partitions-outbox",
        title="`on_commit` in a transaction that inserts a row, with the outbox in partitioned tables",
        events=10_000,
        subjects=(
            Subject("ours", "30 partitions", "partitioned.outbox", {"partitions": True}),
            Subject("plain", "plain tables", "partitioned.outbox", {"partitions": False}),
        ),
        reference="plain",
        targets=(Target(at_least=0.95),),
        databases=("postgres",),
    ),
)

CLUSTER = (
    Scenario(
        name="cluster-consume",
        title="Consuming events of three APIs on a cluster of three masters, `idempotent=False`",
        events=200_000,
        subjects=(
            Subject("ours", "a cluster", "clustered.consume", {"on_cluster": True, "idempotent": False}),
            Subject("single", "a single server", "clustered.consume", {"on_cluster": False, "idempotent": False}),
        ),
        reference="single",
        measures=("cost", "cpu_cost"),
        targets=(Target(measure="cost", at_most=1.15),),
    ),
    Scenario(
        name="cluster-inbox",
        title="The same with the inbox",
        events=20_000,
        subjects=(
            Subject("ours", "a cluster", "clustered.consume", {"on_cluster": True, "idempotent": True}),
            Subject("single", "a single server", "clustered.consume", {"on_cluster": False, "idempotent": True}),
        ),
        reference="single",
        measures=("cost", "cpu_cost"),
        targets=(Target(measure="cost", at_most=1.15),),
        databases=("postgres",),
    ),
    Scenario(
        name="cluster-on-commit",
        title="`on_commit` in a transaction that inserts a row, for three APIs on a cluster of three masters",
        events=10_000,
        subjects=(
            Subject("ours", "a cluster", "clustered.commit", {"on_cluster": True}),
            Subject("single", "a single server", "clustered.commit", {"on_cluster": False}),
        ),
        reference="single",
        measures=("cost", "cpu_cost"),
        targets=(Target(measure="cost", at_most=1.15),),
        databases=BOTH,
    ),
)

WORKERS = (
    Scenario(
        name="listeners",
        title="Deliveries to so many listeners of one process, `idempotent=False`",
        events=1_000_000,
        subjects=tuple(
            Subject(f"{count}", f"listeners: {count}", "working.listeners", {"listeners": count})
            for count in (1, 10, 100)
        ),
        reference="1",
        targets=tuple(Target(subject=subject, at_least=0.95) for subject in ("10", "100")),
        smoke={"events": SMOKE_EVENTS, "listeners": 10},
    ),
    Scenario(
        name="idle",
        title="What listeners need that wait for events",
        events=10,
        subjects=(
            Subject("ours", "100 listeners", "working.idle", {"listeners": 100, **WATCHED}),
            Subject("none", "no listener", "working.idle", {"listeners": 0, **WATCHED}),
        ),
        reference="none",
        measures=("rss", "cpu"),
        targets=(
            Target(measure="rss", kind="difference", at_most=10.0),
            Target(measure="cpu", kind="difference", at_most=1.0),
        ),
        smoke={"listeners": 10, "seconds": 0.2, "settle": 0.2},
    ),
    Scenario(
        name="processes",
        title="Worker processes that share events, `idempotent=False`, the second one on the servers' core",
        events=200_000,
        subjects=(
            Subject("two", "two processes", "sharing.processes", {"processes": 2, **BARE_HANDLER}),
            Subject("one", "one process", "sharing.processes", {"processes": 1, **BARE_HANDLER}),
        ),
        reference="one",
        targets=(Target(subject="two", at_least=1.4),),
    ),
    Scenario(
        name="processes-bare",
        title="The same with the loop of redis-py that is (r)",
        events=200_000,
        subjects=(
            Subject("two", "two processes", "sharing.bare", {"processes": 2}),
            Subject("one", "one process", "sharing.bare", {"processes": 1}),
        ),
        reference="one",
    ),
    Scenario(
        name="processes-inbox",
        title="Worker processes that share events, with the inbox and a handler that inserts a row",
        events=20_000,
        subjects=(
            Subject("two", "two processes", "sharing.processes", {"processes": 2, "handler": "insert"}),
            Subject("one", "one process", "sharing.processes", {"processes": 1, "handler": "insert"}),
        ),
        reference="one",
        targets=(Target(subject="two", at_least=1.4),),
        databases=("postgres",),
    ),
    *(
        Scenario(
            name=f"updates-{processes}",
            title=f"Updating one of 200 rows for each event, by its key: worker processes: {processes}",
            events=6_000,
            subjects=(
                Subject("ours", "lightbus_django", "sharing.processes", {"processes": processes, "handler": "update"}),
                Subject("b", "(b) one transaction an event: key, row", "sharing.by_hand", {"processes": processes}),
            ),
            reference="b",
            targets=(Target(at_least=1.0),),
            databases=("postgres",),
        )
        for processes in (1, 2, 3)
    ),
    Scenario(
        name="updates-processes",
        title="Updating one of 200 rows for each event, by its key",
        events=6_000,
        subjects=tuple(
            Subject(key, f"{key} processes", "sharing.processes", {"processes": processes, "handler": "update"})
            for key, processes in (("one", 1), ("two", 2), ("three", 3))
        ),
        reference="one",
        targets=(Target(subject="two", at_least=1.3),),
        databases=("postgres",),
    ),
    Scenario(
        name="web",
        title="A web process whose requests lock three of these rows, beside a worker that updates them",
        events=20_000,
        subjects=(
            Subject("ours", "beside lightbus_django", "contending.web", {"worker": "ours", "seconds": 10.0}),
            Subject("b", "beside (b)", "contending.web", {"worker": "by_hand", "seconds": 10.0}),
            Subject("none", "alone", "contending.web", {"worker": "none", "seconds": 10.0}),
        ),
        reference="none",
        measures=("rate", "died", "slow", "handled"),
        targets=(
            Target(measure="died", kind="value", at_most=0.0),
            Target(measure="slow", kind="difference", at_most=0.0),
        ),
        databases=("postgres",),
        smoke={"events": 2_000, "seconds": 0.5},
    ),
    Scenario(
        name="slow",
        title="A fast listener beside one that sleeps for 10 ms at each event, `idempotent=False`",
        events=200_000,
        subjects=(
            Subject("beside", "beside the slow one", "working.beside", {"slow": True}),
            Subject("alone", "alone", "working.beside", {"slow": False}),
        ),
        reference="alone",
        targets=(Target(subject="beside", at_least=0.9),),
    ),
    Scenario(
        name="slow-shared",
        title="Nine fast listeners that share threads with one that sleeps for 10 ms at each event, `idempotent=False`",
        events=900_000,
        subjects=(
            Subject("beside", "beside the slow one", "working.beside", {"slow": True, "listeners": 9}),
            Subject("alone", "without it", "working.beside", {"slow": False, "listeners": 9}),
        ),
        reference="alone",
        targets=(Target(subject="beside", at_least=0.9),),
        smoke={"events": 2 * SMOKE_EVENTS},
    ),
    Scenario(
        name="memory",
        title="Memory of a worker, and of a process that fires, under load",
        events=500,
        subjects=(Subject("ours", "500 events/s", "memory.under_load", {"minutes": 60.0}),),
        measures=("growth", "firing_growth"),
        databases=BOTH,
        smoke={"events": SMOKE_EVENTS, "minutes": 0.05},
        rounds=1,
        by_name_only=True,
    ),
)

INSTEAD = {
    "faststream_batch": ("FastStream, batches of 100", 100_000, None),
    "faststream": ("FastStream", 10_000, 10_000),
    "dramatiq": ("Dramatiq, prefetch 1,000", 20_000, 10_000),
    "huey": ("huey", 10_000, 10_000),
    "taskiq": ("taskiq-redis, streams", 10_000, 10_000),
    "pydocket": ("pydocket", 10_000, 10_000),
    "celery": ("Celery", 5_000, 5_000),
    "rq": ("rq", 2_000, 5_000),
    "edx_event_bus_redis": ("edx-event-bus-redis", 10_000, 10_000),
    "lightbus": ("Lightbus 1.3.0a6", 5_000, 5_000),
}
"""What people would use instead: what it is, how many events it consumes, and how many it fires, if in another way."""

COMPETITORS = (
    Scenario(
        name="competitors-consume",
        title="Consuming, beside what people would use instead",
        events=200_000,
        subjects=(
            Subject("ours", "lightbus_django, idempotent=False", "consuming.ours", {"idempotent": False}),
            Subject("r", "(r) a bare loop of redis-py", "consuming.bare"),
            *(Competitor(key, label, "consume", {"events": count}) for key, (label, count, _) in INSTEAD.items()),
        ),
        reference="ours",
        smoke={},
        by_name_only=True,
    ),
    Scenario(
        name="competitors-fire",
        title="Firing one at a time, beside what people would use instead",
        events=30_000,
        subjects=(
            Subject("ours", "lightbus_django: fire", "firing.ours"),
            Subject("xadd", "redis-py's xadd", "firing.xadd"),
            *(Competitor(key, label, "fire", {"events": count}) for key, (label, _, count) in INSTEAD.items() if count),
        ),
        reference="ours",
        smoke={},
        by_name_only=True,
    ),
)

SCENARIOS = (*CONSUMING, *FIRING, *LATENCY, *GROWTH, *PARTITIONS, *CLUSTER, *WORKERS, *COMPETITORS)
