from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import CommandError, CommandParser

from lightbus_django.bus import streams
from lightbus_django.bus.client import get_client
from lightbus_django.conf import format_name, get_settings
from lightbus_django.firing.databases import databases_with_tables
from lightbus_django.management.base import LightbusCommand
from lightbus_django.management.output import confirm, console, print_table, reporting_errors, seconds, table
from lightbus_django.operating.durations import duration
from lightbus_django.operating.pausing import find_listener
from lightbus_django.operating.renaming import move_records
from lightbus_django.running.orphaned_groups import (
    count_retrying,
    find_orphaned_groups,
    last_seen,
    retire_group,
)


class Command(LightbusCommand):
    help = (
        "Retire consumer groups whose listeners are gone for good: the groups are destroyed, so that no events are "
        "kept for them, and their retries become dead letters. Without a name, list the groups, those unread for "
        "longest first, and failed events of groups without a listener."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("group", nargs="*", help="name of a consumer group")
        parser.add_argument("--stream", action="append", metavar="KEY", help="only in this stream; repeatable")
        parser.add_argument(
            "--idle",
            type=seconds,
            metavar="SECONDS",
            help="how long the group must not have been read (GROUP_STALE_AFTER, 120 with --move-to); at least 120",
        )
        parser.add_argument(
            "--move-to",
            metavar="LISTENER",
            help="give the place of the group, its keys and its failed events to this listener, which was renamed",
        )
        parser.add_argument("--no-input", action="store_true", help="don't ask for confirmation")

    def handle(self, **options: Any) -> None:
        with reporting_errors(self.stdout):
            settings = get_settings()
            default = streams.RETIRE_AFTER if options["move_to"] else settings.group_stale_after
            self.idle = max(default if options["idle"] is None else options["idle"], streams.RETIRE_AFTER)
            self.client = get_client(settings.url, settings.redis_timeout)
            keys = options["stream"] or sorted(streams.find_streams(self.client))
            groups = [group for key in keys for group in streams.groups(self.client, key)]
            if not options["group"]:
                self.show(groups)
                self.show_orphaned(settings.service_name)
                return
            if options["move_to"]:
                self.move(options["group"], groups, options)
                return
            for name in options["group"]:
                self.retire(name, [group for group in groups if group.name == name], options)

    def retire(self, name: str, groups: list[streams.Group], options: dict[str, Any]) -> None:
        aliases = list(databases_with_tables())
        seen = [time for alias in aliases if (time := last_seen(alias, name)) is not None]
        retrying = sum(count_retrying(alias, name) for alias in aliases)
        if not (groups or seen or retrying):
            raise CommandError(f"There is no consumer group {name!r}. Without a name, the command lists them.")
        if groups:
            self.show(groups)
        for group in groups:
            if group.idle is not None and group.idle < self.idle:
                raise CommandError(self.in_use(f"{name!r} of {group.stream}"))
        if not groups and seen and (datetime.now(UTC) - max(seen)).total_seconds() < self.idle:
            raise CommandError(self.in_use(repr(name)))
        if not options["no_input"] and not self.confirm_end(name, retrying):
            raise CommandError("Cancelled; nothing was destroyed.")
        for group in groups:
            if not streams.retire(self.client, group.stream, name, idle=self.idle):
                raise CommandError(self.in_use(f"{name!r} of {group.stream}"))
            self.stdout.write(f"Destroyed group {name!r} of {group.stream}.")
        for alias in aliases:
            if count := retire_group(alias, name, options["stream"]):
                self.stdout.write(f"Turned {count} retries of {name!r} in database {alias!r} into dead letters.")

    def move(self, names: list[str], groups: list[streams.Group], options: dict[str, Any]) -> None:
        if len(names) != 1:
            raise CommandError("--move-to takes the name of one group.")
        old, listener = names[0], find_listener(options["move_to"])
        new = listener.group(format_name(get_settings().service_name))
        if old == new:
            raise CommandError(f"{old!r} is the group of this listener already.")
        either = (group for group in groups if group.name in (old, new))
        if used := [each for each in either if each.idle is not None and each.idle < self.idle]:
            raise CommandError(self.in_use(" and ".join(f"{each.name!r} of {each.stream}" for each in used)))
        question = f"Give the place of {old!r}, its keys and its failed events to {new!r}?"
        if not options["no_input"] and not confirm(question):
            raise CommandError("Cancelled; nothing was moved.")
        count = sum(move_records(old, new, listener))
        self.stdout.write(f"Moved {count} keys and failed events from {old!r} to {new!r}.")
        for stream in sorted({group.stream for group in groups if group.name == old}):
            pending = streams.move_group(self.client, stream, old, new, idle=self.idle)
            if pending is None:
                raise CommandError(self.in_use(f"{old!r} or {new!r} of {stream}"))
            self.stdout.write(f"Moved the group of {stream} with {pending} pending events.")

    def in_use(self, what: str) -> str:
        return (
            f"{what} is in use: one of its consumers was active within the last {duration(self.idle)}. Stop all "
            f"processes that run such a listener, and wait that long. --idle SECONDS sets another time, at least "
            f"{duration(streams.RETIRE_AFTER)}."
        )

    def confirm_end(self, name: str, retrying: int) -> bool:
        rest = f" {retrying} failed events won't be retried any more." if retrying else ""
        return confirm(f"Destroy the group {name!r}? It loses its unhandled events.{rest}")

    def show(self, groups: Iterable[streams.Group]) -> None:
        rows = table("stream", "group", "unread for", "unread", "pending")
        for group in sorted(groups, key=lambda group: -group.unread_for()):
            never = group.idle is None and group.last_delivered_id == "0-0"
            rows.add_row(
                group.stream,
                group.name,
                "never read" if never else duration(group.unread_for()),
                "unknown" if group.lag is None else str(group.lag),
                str(group.pending),
            )
        if not rows.rows:
            self.stdout.write("There are no consumer groups.")
            return
        print_table(self.stdout, rows)

    def show_orphaned(self, service_name: str) -> None:
        rows = table("group", "database", "retrying", "dead letters")
        for alias in databases_with_tables():
            for group in find_orphaned_groups(alias, service_name):
                rows.add_row(group.name, alias, str(group.retrying), str(group.dead_letters))
        if rows.rows:
            self.stdout.write("Failed events of groups without a listener in this service, which are not retried:")
            console(self.stdout).print(rows)
