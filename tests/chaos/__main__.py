"""`python -m tests.chaos`: run events through many processes while things break, and count."""

import argparse
import math
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import django
import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.own_postgresql import OwnPostgreSQL, own_postgresql
from tests.proxies import Proxy

from .cluster import ChaosCluster
from .processes import process_group
from .report import CLUSTER_HEAD, HEAD, add_row, markdown_row
from .sabotage import SABOTAGES
from .servers import Redis, Unavailable, database, find_redis_binary

if TYPE_CHECKING:
    from .harness import Options, Outcome, State

POSTGRESQL = "postgres://postgres@127.0.0.1:5432/postgres"
UNAVAILABLE = 77
"""The exit code where a server is missing: nothing was tried."""

SHOWN = 10
"""How many cases of a kind are printed."""

console = Console(highlight=False)


def main() -> int:
    arguments = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the database is dropped then, too
    seed = arguments.seed or str(random.randrange(1_000_000))
    logs = Path(tempfile.mkdtemp(prefix=f"lightbus-chaos-{seed}-"))
    console.print(f"seed {seed}, logs in {logs}")
    try:
        outcome = run(arguments, seed, logs)
    except Unavailable as error:
        console.print(f"skipped: {error}")
        shutil.rmtree(logs)
        return UNAVAILABLE
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    console.print(table(outcome))
    head = CLUSTER_HEAD if arguments.cluster else HEAD
    row = markdown_row(seed, outcome, head)
    print(row)
    if arguments.report:
        add_row(arguments.report, row, head)
    complain(outcome, logs / "wrong.txt")
    if outcome.is_well and not arguments.keep:
        shutil.rmtree(logs)
    elif not outcome.is_well:
        console.print(
            f"[bold red]FAILED[/] with --seed {seed} --events {arguments.events}; logs in {logs}", soft_wrap=True
        )
    return 0 if outcome.is_well else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__, allow_abbrev=False)
    parser.add_argument("--events", type=int, default=5000, help="how many events producers commit (5000)")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop firing then, though there are fewer events"
    )
    parser.add_argument("--seed", help="what decides about all mischief; drawn if not given")
    parser.add_argument("--rate", type=float, default=300.0, help="events a second, of all producers (300)")
    parser.add_argument("--workers", type=int, default=4, help="processes that listen (4)")
    parser.add_argument("--producers", type=int, default=3, help="processes that fire (3)")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between mischief, on average (2)")
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="on a Redis Cluster, whose masters fail over, die and freeze, and whose slots migrate; with two services",
    )
    parser.add_argument("--redis", metavar="PATH", help="the server's program; by default the embedded Valkey")
    parser.add_argument(
        "--crashes",
        action="store_true",
        help="crash PostgreSQL as well: a server of the harness's own, with a pgbouncer in front if that is installed",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="add the result to the table in this Markdown file")
    parser.add_argument("--keep", action="store_true", help="keep the logs")
    parser.add_argument(
        "--sabotage",
        choices=SABOTAGES,
        help=f"break the package, so that the run has to fail: {'; '.join(map(': '.join, SABOTAGES.items()))}",
    )
    arguments = parser.parse_args()
    if arguments.cluster and arguments.redis:
        parser.error("--cluster runs the redis-server on the path")
    return arguments


def run(arguments: argparse.Namespace, seed: str, logs: Path) -> "Outcome":
    with process_group() as group, databases_for(arguments) as (urls, postgresql), ExitStack() as stack:
        proxy = stack.enter_context(Proxy(urls["DATABASE_URL"]))
        redis: Redis | ChaosCluster
        if arguments.cluster:
            redis = stack.enter_context(cluster(seed))
        else:
            redis = Redis(arguments.redis or find_redis_binary(), group=group, logs=logs)
        # Our processes get all this as well.
        os.environ |= {
            "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
            **urls,
            "LIGHTBUS_URL": redis.url,
            "CHAOS_SERVICE": "chaos",
            "CHAOS_SEED": seed,
            "CHAOS_SABOTAGE": arguments.sabotage or "",
            "PYTHONUNBUFFERED": "1",
        }
        django.setup()
        from django.db import connections

        from .harness import Harness, Options

        options = Options(
            seed=seed,
            events=arguments.events,
            minutes=arguments.minutes,
            rate=arguments.rate,
            workers=arguments.workers,
            producers=arguments.producers,
            pause=arguments.pause,
        )
        try:
            with Display(options) as display:
                return Harness(options, redis, postgresql, proxy, group, logs, display.show).run()
        finally:
            connections.close_all()


@contextmanager
def databases_for(arguments: argparse.Namespace) -> Iterator[tuple[dict[str, str], OwnPostgreSQL | None]]:
    """Yield the URLs of two databases, or three, and their server if that is one to be crashed."""
    names = ["other", "echo"] if arguments.cluster else ["other"]
    urls = {"ECHO_DATABASE_URL": ""}
    if not arguments.crashes:
        server = os.environ.get("DATABASE_URL") or POSTGRESQL
        if not server.startswith("postgres"):
            raise Unavailable("no PostgreSQL: DATABASE_URL names another database")
        with ExitStack() as stack:
            urls["DATABASE_URL"] = stack.enter_context(database(server, "default"))
            for name in names:
                urls[f"{name.upper()}_DATABASE_URL"] = stack.enter_context(database(server, name))
            yield urls, None
        return
    try:
        with own_postgresql() as postgresql:
            # Only the gate makes deferred commits durable.
            postgresql.start(wal_writer_delay="10s", max_connections=200)
            with postgresql.connect() as connection:
                for name in names:
                    connection.execute(f"CREATE DATABASE {name}")
            with postgresql.pooled() as pooled_url:
                if pooled_url is None:
                    console.print("without a pooler: pgbouncer is not installed")
                urls["DATABASE_URL"] = pooled_url or postgresql.url
                server = urls["DATABASE_URL"].rpartition("/")[0]
                yield {**urls, **{f"{name.upper()}_DATABASE_URL": f"{server}/{name}" for name in names}}, postgresql
    except pytest.skip.Exception as skipped:
        raise Unavailable(str(skipped)) from None


@contextmanager
def cluster(seed: str) -> Iterator[ChaosCluster]:
    try:
        with ChaosCluster(seed) as chaos_cluster:
            yield chaos_cluster
    except pytest.skip.Exception as skipped:
        raise Unavailable(str(skipped)) from None


class Display:
    """A progress bar on a terminal; elsewhere, such as in CI, a line now and then."""

    def __init__(self, options: "Options") -> None:
        from .listeners import LISTENERS

        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.sent = self.progress.add_task("events", total=options.events)
        self.effects = self.progress.add_task("effects", total=options.events * len(LISTENERS))
        self.shown = 0

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, state: "State") -> None:
        mischief = sum(state.mischief.values())
        self.progress.update(self.sent, completed=state.sent, description=f"{state.phase}, mischief {mischief}")
        self.progress.update(self.effects, completed=state.effects)
        if not console.is_terminal and self.shown % 10 == 0:
            console.print(f"{state.phase}: {state.sent} events, {state.effects} effects, mischief {mischief}")
        self.shown += 1


def table(outcome: "Outcome") -> Table:
    verdict = outcome.verdict
    rows = {
        "events committed": verdict.sent,
        "effects": verdict.effects,
        "of these at a second or later attempt": verdict.retried,
        "dead letters of a COMMIT that was cut off": verdict.cut_off,
        "seconds": f"{outcome.seconds:.0f}",
        "of these after the storm": f"{outcome.drained_in:.0f}",
        "events a second": f"{verdict.sent / outcome.seconds:.0f}",
        "entries trimmed from the streams": outcome.trimmed,
        "published by a relay, or perhaps": verdict.relayed,
        "published once more": verdict.copies,
        "effects restored by lightbus_republish": outcome.restored,
        "fired with fire alone": verdict.alone,
        "of these lost": verdict.alone_lost,
        "order looked at: events in the stream": verdict.in_order,
        "order looked at: effects": verdict.handled_in_order,
        **named(outcome.mischief),
        **named(outcome.fates, "producer "),
        **{what: len(cases) for what, cases in verdict.wrong.items()},
        "other troubles": len(outcome.troubles),
    }
    result = Table("", "", show_header=False)
    for what, count in rows.items():
        result.add_row(what, f"{count:,}" if isinstance(count, int) else count)
    return result


def named(counts: Counter[str], prefix: str = "") -> dict[str, int]:
    return {f"{prefix}{what}": counts[what] for what in sorted(counts)}


def complain(outcome: "Outcome", path: Path) -> None:
    """Print the first cases of all that is wrong; all of them go to a file."""
    wrong = {**outcome.verdict.wrong, "trouble": outcome.troubles}
    path.write_text("".join(f"{what}: {case}\n" for what, cases in wrong.items() for case in cases))
    for what, cases in wrong.items():
        for case in cases[:SHOWN]:
            console.print(f"{what}: {case}", markup=False, soft_wrap=True)
        if len(cases) > SHOWN:
            console.print(f"{what}: {len(cases) - SHOWN} more are in {path}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
