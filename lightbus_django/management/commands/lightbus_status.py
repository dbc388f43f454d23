import time
from typing import Any

from django.core.management.base import CommandError, CommandParser
from rich.console import Group, RenderableType
from rich.live import Live

from lightbus_django.conf import format_name
from lightbus_django.database.errors import one_line
from lightbus_django.exceptions import LightbusError
from lightbus_django.management.base import LightbusCommand
from lightbus_django.management.output import console, natural, reporting_errors, seconds, table, write_json
from lightbus_django.operating.durations import duration
from lightbus_django.operating.health_check import check_process, find_reasons
from lightbus_django.operating.report import ListenerStatus, Process, Status
from lightbus_django.operating.status import read_processes, read_status

WATCH_INTERVAL = 2.0
"""Seconds between two looks with --watch."""


class Command(LightbusCommand):
    help = "Show the processes, listeners, outboxes and streams of this service, and what needs attention."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--watch", action="store_true", help="show it again every two seconds, until Ctrl-C")
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_argument(
            "--check", action="store_true", help="only print what is not well, and exit with 1 if any is"
        )
        parser.add_argument(
            "--max-age",
            type=seconds,
            default=60.0,
            metavar="SECONDS",
            help="with --check: how old the oldest event of a listener may be (60)",
        )
        parser.add_argument("--max-waiting", type=natural, metavar="N", help="with --check: how many events may wait")
        parser.add_argument("--max-dead", type=natural, metavar="N", help="with --check: how many may be dead letters")
        parser.add_argument(
            "--process",
            action="append",
            metavar="NAME",
            help="with --check: look at this process alone, such as {hostname}; repeatable",
        )

    def handle(self, **options: Any) -> None:
        if options["watch"] and (options["check"] or options["json"]):
            raise CommandError("--watch is for people; leave out --check and --json.", returncode=2)
        if not options["check"] and any(options[name] is not None for name in ("process", "max_waiting", "max_dead")):
            raise CommandError("--process, --max-waiting and --max-dead go with --check.", returncode=2)
        if options["check"]:
            self.check_health(options)
            return
        with reporting_errors(self.stdout, as_json=options["json"]):
            if options["json"]:
                write_json(self.stdout, read_status())
            elif options["watch"]:
                self.watch()
            else:
                console(self.stdout).print(render(read_status()))

    def check_health(self, options: dict[str, Any]) -> None:
        """Print what is not well. A Redis that can't be asked about a process is a reason too."""
        processes: list[Process] = []
        if options["process"]:
            names = [format_name(name) for name in options["process"]]
            try:
                processes = [process for process in read_processes() if process.name in names]
                reasons = [reason for name in names for reason in check_process(name, processes)]
            except LightbusError as error:
                reasons = [one_line(error)]
        else:
            limits = {name: options[name] for name in ("max_age", "max_waiting", "max_dead")}
            status = read_status()
            processes = status.processes
            reasons = list(find_reasons(status, **limits))
        paused = sorted({group for process in processes for group in process.paused})
        if options["json"]:
            write_json(self.stdout, {"ok": not reasons, "reasons": reasons, "paused": paused})
        if reasons:
            raise CommandError("\n".join(reasons))
        if not options["json"]:
            self.stdout.write(f"ok, paused: {', '.join(paused)}" if paused else "ok")

    def watch(self) -> None:
        with Live(render(read_status()), console=console(self.stdout), auto_refresh=False) as live:
            try:
                while True:
                    time.sleep(WATCH_INTERVAL)
                    live.update(render(read_status()), refresh=True)
            except KeyboardInterrupt:
                pass


def render(status: Status) -> RenderableType:
    """Return the status as tables."""
    parts: list[RenderableType] = [f"Service {status.service_name} on {status.bus}, {status.at.astimezone():%H:%M:%S}"]
    processes = table(
        "process", "host", "pid", "running for", "last sign", "listeners", "in hand", right=("listeners",)
    )
    for process in status.processes:
        processes.add_row(
            process.name,
            process.host,
            str(process.pid),
            duration(process.seconds_running),
            f"{duration(process.seconds_silent)} ago",
            str(len(process.listeners)),
            "\n".join(process.in_hand),
        )
    parts.append(processes if status.processes else "No process has a heartbeat.")
    if status.silent_consumers:
        names = ", ".join(status.silent_consumers)
        parts.append(f"Without a heartbeat (of an earlier version, or just ended): {names}\n")
    numbers = "waiting", "in hand", "retrying", "dead", "a minute"
    listeners = table(
        "listener", "waiting", "behind", "in hand", *numbers[2:], "p50", "p95", "processes", right=numbers
    )
    for listener in status.listeners:
        listeners.add_row(
            listener.name,
            _waiting(listener),
            duration(listener.seconds_behind) if listener.oldest else "",
            "unknown" if listener.unknown_streams else str(listener.in_hand),
            str(listener.retrying),
            str(listener.dead_letters),
            f"{listener.per_minute:.0f}",
            "" if listener.p50 is None else duration(listener.p50),
            "" if listener.p95 is None else duration(listener.p95),
            ", ".join(listener.processes),
        )
    parts.append(listeners if status.listeners else "This service has no listeners.")
    outboxes = table("outbox of", "unpublished", "refused", "oldest", right=("unpublished", "refused"))
    for outbox in status.outboxes:
        behind = duration(outbox.seconds_behind) if outbox.unpublished else ""
        outboxes.add_row(outbox.database, str(outbox.unpublished), str(outbox.refused), behind)
    parts.append(outboxes)
    streams = table("stream", "length", "memory", "held by", right=("length", "memory"))
    for stream in status.streams:
        memory = "" if stream.memory is None else f"{stream.memory / 1024:,.0f} KiB"
        streams.add_row(stream.key, f"{stream.length:,}", memory, stream.held_by)
    if status.streams:
        parts.append(streams)
    problems = status.all_problems()
    lines = ["Needs attention:", *(f"- {problem}" for problem in problems)] if problems else ["All is well."]
    parts.append("\n".join(lines))
    return Group(*parts)


def _waiting(listener: ListenerStatus) -> str:
    if listener.unknown_streams:
        return "unknown"
    if listener.waiting is None:
        return "no group yet"
    return f"{listener.waiting:,}" if listener.is_exact else f"about {listener.waiting:,}"
