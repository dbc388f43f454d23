from typing import Any

from django.core.management.base import CommandError, CommandParser

from lightbus_django.database.errors import one_line
from lightbus_django.exceptions import BusError, DatabaseUnavailable
from lightbus_django.listening.registry import registry
from lightbus_django.management.base import LightbusCommand
from lightbus_django.management.output import add_span, print_table, progress, reporting_errors, span, table, write_json
from lightbus_django.operating.pausing import find_listener
from lightbus_django.operating.verification import Verification, Verified

NUMBERS = "fired", "published", "handled", "waiting", "failed", "discarded", "before_start", "unproven", "missing"

SHOWN = 20
"""How many ids of missing events are shown for each listener, unless --json is given."""


class Command(LightbusCommand):
    help = (
        "Check that every event since a time has reached every listener of this service, from the records of outbox, "
        "streams, inbox and failures. Exits with 1 if an event is missing."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        add_span(parser, "events fired")
        parser.add_argument("--listener", action="append", metavar="NAME", help="only this listener; repeatable")
        parser.add_argument("--replay", action="store_true", help="hand missing events to their listener alone")
        parser.add_argument("--json", action="store_true", help="print JSON, with up to 1000 ids for each listener")

    def handle(self, **options: Any) -> None:
        with reporting_errors(self.stdout, as_json=options["json"]):
            since, until = span(options)
            listeners = [find_listener(name) for name in options["listener"] or ()] or list(registry)
            try:
                verification = Verification(listeners, since=since, until=until, replay=options["replay"])
                with progress(self.stderr, "comparing") as advance:
                    results = verification.run(advance)
            except (BusError, DatabaseUnavailable) as error:
                raise CommandError(f"Incomplete, run it again: {one_line(error)}") from error
        if options["json"]:
            write_json(self.stdout, results)
        else:
            self.show(results)
        if unclaimed := verification.unclaimed_groups:
            self.stderr.write(f"Not compared: {unclaimed.problem}; {unclaimed.way_out}")
        missing = sum(result.missing for result in results)
        replayed = sum(result.replayed for result in results)
        if missing > replayed:
            hint = "" if options["replay"] else " --replay hands them to their listeners."
            raise CommandError(f"{missing - replayed} events are missing.{hint}")

    def show(self, results: list[Verified]) -> None:
        headings = [name.replace("_", " ") for name in NUMBERS]
        rows = table("listener", *headings, right=headings)
        for result in sorted(results, key=lambda result: result.listener):
            rows.add_row(result.listener, *(f"{getattr(result, name):,}" for name in NUMBERS))
        if not rows.rows:
            self.stdout.write("This service has no listeners.")
            return
        print_table(self.stdout, rows)
        for result in results:
            for event_id in result.missing_ids[:SHOWN]:
                self.stdout.write(f"missing for {result.listener}: {event_id}")
            if result.replayed:
                self.stdout.write(
                    f"{result.replayed} events handed to {result.listener}; lightbus_listen handles them."
                )
