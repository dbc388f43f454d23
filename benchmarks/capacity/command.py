"""The command line: `python -m benchmarks capacity`."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from benchmarks.cores import share_out
from benchmarks.databases import Databases
from benchmarks.runner import SubjectFailed
from benchmarks.servers import Unavailable, redis_server

from . import figures, page, report
from .calculator import Machines, Workload
from .measuring import measure

WORKLOAD = {
    "peak": "the busiest minutes, as a multiple of the mean",
    "payload": "bytes of JSON",
    "listeners": "how many listeners get an event",
    "on_commit": "share of events that are fired with `on_commit`",
    "inbox": "share of deliveries to idempotent listeners",
    "failed": "share of deliveries that become dead letters",
    "handler": "milliseconds of CPU time that a handler itself takes",
    "stream_retention": "days",
    "inbox_retention": "days",
    "outbox_retention": "days",
    "failed_retention": "days",
    "threads": "the setting THREADS",
}
MACHINES = {
    "use": "share of a core that may be in use at the peak",
    "redis_memory": "GB of a server",
    "postgresql_cores": "cores of the server",
    "postgresql_disk": "GB of the server",
    "connections": "max_connections of PostgreSQL",
}


def main(words: Sequence[str]) -> int:
    arguments = parser().parse_args(words)
    if arguments.measure:
        try:
            _measure(arguments.scale)
        except (Unavailable, SubjectFailed) as error:
            print(error)
            return 1
    if arguments.measure or arguments.update_page:
        page.PAGE.write_text(page.updated(page.PAGE.read_text(), lambda words: output(parser().parse_args(words))))
    else:
        print(output(arguments))
        return 0 if figures.PATH.exists() else 1
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks capacity",
        description="Tell what so many events a day need, from figures that were measured.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--events-per-day", type=float, metavar="N", help="such as 1e9")
    what.add_argument("--figures", action="store_true", help="show the figures")
    what.add_argument("--measure", action="store_true", help="measure the figures here, and update docs/capacity.md")
    what.add_argument("--update-page", action="store_true", help="update docs/capacity.md with the figures there are")
    parser.add_argument("--scale", type=float, default=1.0, help="by what to multiply the events that are measured")
    for struct, texts in ((Workload, WORKLOAD), (Machines, MACHINES)):
        defaults: dict[str, Any] = {field: getattr(_default(struct), field) for field in texts}
        group = parser.add_argument_group("workload" if struct is Workload else "one server of each kind")
        for field, text in texts.items():
            default = defaults[field]
            group.add_argument(
                f"--{field.replace('_', '-')}", type=type(default), default=default, metavar="N", help=text
            )
    return parser


def output(arguments: argparse.Namespace) -> str:
    """Return what a command prints that measures nothing."""
    if not figures.PATH.exists():
        return report.NOT_MEASURED
    measured = figures.read()
    if arguments.figures:
        return report.describe_figures(measured)
    values = vars(arguments)
    workload = Workload(events_per_day=arguments.events_per_day, **{name: values[name] for name in WORKLOAD})
    return report.describe(workload, measured, Machines(**{name: values[name] for name in MACHINES}))


def _default(struct: type[Any]) -> Any:
    return Workload(events_per_day=0) if struct is Workload else Machines()


def _measure(scale: float) -> None:
    if not share_out():
        print("servers and measured process are not kept apart: one core only, or no sched_setaffinity here")
    with redis_server(os.environ.get("LIGHTBUS_URL"), None) as url, Databases() as databases:
        figures.write(measure(url, databases, scale, print))
