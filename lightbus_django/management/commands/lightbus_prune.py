from datetime import UTC, datetime
from typing import Any

from django.core.management.base import CommandParser
from django.db import router

from lightbus_django.bus.client import get_client
from lightbus_django.conf import get_settings
from lightbus_django.events.times import as_aware
from lightbus_django.management.base import LightbusCommand
from lightbus_django.management.output import check_tables, database, progress, reporting_errors
from lightbus_django.models import OutboxEvent
from lightbus_django.running.pruning import cutoffs_at, prune


class Command(LightbusCommand):
    help = "Delete rows that are older than INBOX_RETENTION, OUTBOX_RETENTION and FAILED_RETENTION allow."

    def add_arguments(self, parser: CommandParser) -> None:
        alias = router.db_for_write(OutboxEvent)
        parser.add_argument(
            "--cutoff",
            choices=["inbox", "outbox"],
            help="delete nothing; print the time before which no event is needed in this table, for its partitions",
        )
        parser.add_argument("--database", type=database, default=alias, help=f"alias of the database ({alias})")

    def handle(self, **options: Any) -> None:
        settings = get_settings()
        with reporting_errors(self.stdout):
            check_tables(options["database"])
            cutoffs = cutoffs_at(datetime.now(UTC), settings, get_client(settings.url, settings.redis_timeout))
        if options["cutoff"]:
            cutoff = cutoffs.inbox_of_all if options["cutoff"] == "inbox" else cutoffs.outbox
            self.stdout.write(as_aware(cutoff).isoformat(timespec="seconds"))
            return
        deleted = {"dead letters": 0, "processed events": 0, "published events": 0}
        with reporting_errors(self.stdout), progress(self.stderr, "pruning") as advance:
            for what, count in prune(options["database"], cutoffs):
                deleted[what] += count
                advance(count)
        self.stdout.write(f"Deleted {', '.join(f'{count} {what}' for what, count in deleted.items())}.")
