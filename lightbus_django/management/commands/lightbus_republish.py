from datetime import datetime
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import router
from django.db.models import Count

from lightbus_django.bus.client import get_client
from lightbus_django.conf import get_settings
from lightbus_django.events.times import as_stored
from lightbus_django.exceptions import LightbusError
from lightbus_django.firing.relay import republish
from lightbus_django.management.base import LightbusCommand
from lightbus_django.management.output import add_span, check_tables, database, progress, reporting_errors, span
from lightbus_django.models import OutboxEvent


class Command(LightbusCommand):
    help = (
        "Publish events of the outbox again under the same ids, for instance after Redis has lost data. Listeners skip "
        "events that they have handled, except with idempotent=False."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        add_span(parser, "events first published")
        parser.add_argument("--event", action="append", metavar="NAME", help="only this event; repeatable")
        alias = router.db_for_write(OutboxEvent)
        parser.add_argument("--database", type=database, default=alias, help=f"alias of the database ({alias})")
        parser.add_argument("--dry-run", action="store_true", help="only show how many events would be published")

    def handle(self, **options: Any) -> None:
        with reporting_errors(self.stdout):
            check_tables(options["database"])
            self.republish(options)

    def republish(self, options: dict[str, Any]) -> None:
        since, until = span(options)
        rows = OutboxEvent.objects.using(options["database"]).published(as_stored(since), as_stored(until))
        if options["event"]:
            rows = rows.filter(event_name__in=options["event"])
        counts = dict(rows.values_list("event_name").annotate(Count("pk")).order_by("event_name"))
        for name, count in counts.items():
            self.stdout.write(f"{name}: {count}")
        total = sum(counts.values())
        if not total:
            span_text = f"between {_local(since)} and {_local(until)}"
            self.stdout.write(f"The outbox has no such events that were published {span_text}.")
            return
        if options["dry_run"]:
            self.stdout.write(f"{total} events would be published again.")
            return
        done = 0
        try:
            settings = get_settings()
            client = get_client(settings.url, settings.redis_timeout)
            with progress(self.stderr, "publishing", total) as advance:
                for count in republish(rows, client, settings):
                    done += count
                    advance(count)
        except LightbusError as error:
            raise CommandError(
                f"{done} of {total} events were published again, then: {error}\n"
                "Run the command again: listeners skip events that they have handled."
            ) from error
        self.stdout.write(f"{done} events published again.")


def _local(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"
