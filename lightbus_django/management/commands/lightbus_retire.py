import math
from collections.abc import Iterable
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich import box
from rich.console import Console
from rich.table import Table

from lightbus_django import streams
from lightbus_django.conf import get_settings
from lightbus_django.exceptions import LightbusError
from lightbus_django.transport import Transport, get_transport


class Command(BaseCommand):
    help = (
        "Retire consumer groups whose listeners are gone for good, so that events are not kept for them any more. "
        "Without a name: list the groups, those first that nobody has read for longest."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("group", nargs="*", help="the name of a consumer group")
        parser.add_argument("--stream", action="append", metavar="KEY", help="only in this stream; repeatable")
        parser.add_argument(
            "--idle",
            type=float,
            metavar="SECONDS",
            help="how long nobody must have read the group (GROUP_STALE_AFTER); at least 120, as a process that only "
            "waits shows up now and then",
        )
        parser.add_argument("--no-input", action="store_true", help="don't ask")

    def handle(self, **options: Any) -> None:
        try:
            settings = get_settings()
            idle = settings.group_stale_after if options["idle"] is None else options["idle"]
            idle = max(idle, streams.RETIRE_AFTER)
            transport = get_transport(settings.url, settings.redis_timeout)
            keys = options["stream"] or sorted(streams.find_streams(transport))
            groups = [group for key in keys for group in streams.groups(transport, key)]
            if not options["group"]:
                self.show(groups)
                return
            for name in options["group"]:
                self.retire(transport, name, [group for group in groups if group.name == name], idle, options)
        except LightbusError as error:
            raise CommandError(str(error)) from error

    def retire(
        self, transport: Transport, name: str, groups: list[streams.Group], idle: float, options: dict[str, Any]
    ) -> None:
        if not groups:
            raise CommandError(f"There is no consumer group {name!r}. Without a name, the command lists them.")
        self.show(groups)
        for group in groups:
            if group.idle is not None and group.idle < idle:
                raise CommandError(self.in_use(group, idle))
        if not options["no_input"] and not self.is_wanted(name):
            raise CommandError("Nothing was destroyed.")
        for group in groups:
            if not streams.retire(transport, group.stream, name, idle=idle):
                raise CommandError(self.in_use(group, idle))
            self.stdout.write(f"{name!r} of {group.stream} is gone.")

    def in_use(self, group: streams.Group, idle: float) -> str:
        return (
            f"{group.name!r} of {group.stream} is in use: one of its consumers has shown up within the last "
            f"{_length(idle)}. Stop its processes, and wait that long; --idle SECONDS allows a shorter time, but not "
            f"less than {_length(streams.RETIRE_AFTER)}."
        )

    def is_wanted(self, name: str) -> bool:
        try:
            return input(f"Destroy the group {name!r}? What it has not handled is lost to it. [y/N] ") == "y"
        except EOFError:
            raise CommandError("There is nobody to ask; --no-input does not ask.") from None

    def show(self, groups: Iterable[streams.Group]) -> None:
        table = Table(box=box.SIMPLE)
        for heading in ("stream", "group", "not read for", "unread", "pending"):
            table.add_column(heading, overflow="fold")
        for group in sorted(groups, key=lambda group: -group.unread_for()):
            never = group.idle is None and group.last_delivered_id == "0-0"
            table.add_row(
                group.stream,
                group.name,
                "never read" if never else _length(group.unread_for()),
                "unknown" if group.lag is None else str(group.lag),
                str(group.pending),
            )
        if not table.rows:
            self.stdout.write("There are no consumer groups.")
            return
        # Wide enough where it is no terminal, for names are to be copied.
        width = None if self.stdout.isatty() else 200
        Console(file=self.stdout, width=width, no_color=True, markup=False).print(table)  # type: ignore[arg-type]


def _length(seconds: float) -> str:
    if math.isinf(seconds):
        return "unknown"
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"
