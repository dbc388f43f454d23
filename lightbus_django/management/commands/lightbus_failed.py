import sys
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import router
from django.utils import timezone

from lightbus_django.management import selection
from lightbus_django.management.base import LightbusCommand
from lightbus_django.management.output import (
    check_tables,
    current_user,
    database,
    print_table,
    reporting_errors,
    seconds,
    table,
    write_json,
)
from lightbus_django.models import FailedEvent, FailedEventQuerySet, new_retry_request
from lightbus_django.operating import failures
from lightbus_django.operating.retrying import RetryOutcome, read_outcomes

LIMIT = 50
"""How many events `list` shows by default."""

WAIT = 60.0
"""Seconds that `retry --wait` waits by default."""

POLL = 0.5
"""Minimum number of seconds between two looks at the outcome."""


class Command(LightbusCommand):
    help = "List failed events and their causes; retry, discard or export them."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        show_list = self.add_action(actions, "list", "list failed events by cause, or one by one with --each")
        show_list.add_argument("--each", action="store_true", help="list single events, the latest first")
        self.add_action(actions, "show", "show one event with its payload, traceback and history", takes_id=True)
        retry = self.add_action(actions, "retry", "retry events now, with all their attempts ahead of them")
        discard = self.add_action(actions, "discard", "discard events: they count as processed, and are not retried")
        discard.add_argument("--reason", required=True, help="why, for the records")
        retry.add_argument(
            "--wait",
            type=seconds,
            nargs="?",
            const=WAIT,
            metavar="SECONDS",
            help=f"wait for the outcome ({WAIT:.0f}); exit with 1 if not all are done",
        )
        for action in (retry, discard):
            action.add_argument("id", nargs="*", help="ids of events, or their beginnings")
            action.add_argument("--all", action="store_true", help="without ids and filters: all of them")
            action.add_argument("--no-input", action="store_true", help="don't ask for confirmation")
        export = self.add_action(actions, "export", "print one event as JSON or as a pytest fixture", takes_id=True)
        export.add_argument("--format", choices=("json", "pytest"), default="json", help="json")

    def add_action(self, actions: Any, name: str, text: str, *, takes_id: bool = False) -> ArgumentParser:
        action: ArgumentParser = actions.add_parser(name, help=text, description=text)
        alias = router.db_for_write(FailedEvent)
        action.add_argument("--database", type=database, default=alias, help=f"alias of the database ({alias})")
        action.add_argument("--listener", metavar="NAME", help="only those of this listener or consumer group")
        if takes_id:
            action.add_argument("id", help="id of an event, or its beginning")
            return action
        selection.add_filters(action)
        action.add_argument("--json", action="store_true", help="print JSON")
        return action

    def handle(self, **options: Any) -> None:
        with reporting_errors(self.stdout, as_json=options.get("json", False)):
            check_tables(options["database"])
            getattr(self, f"handle_{options['action']}")(options)

    # --- Actions ------------------------------------------------------------------------------

    def handle_list(self, options: dict[str, Any]) -> None:
        events = selection.select(options)
        if options["each"]:
            self.list_each(events, options)
            return
        groups = failures.group_failures(events)
        if options["json"]:
            write_json(self.stdout, groups)
            return
        rows = table("group", "exception", "place", "count", "dead", "first", "last", "sample", right=("count", "dead"))
        for group in groups:
            rows.add_row(
                group.consumer_group,
                group.exception or "(recorded by an earlier version)",
                group.place,
                str(group.count),
                str(group.dead_letters),
                _time(group.first_at),
                _time(group.last_at),
                group.sample_error[:80],
            )
        self.print(rows, "No failed events.")

    def list_each(self, events: FailedEventQuerySet, options: dict[str, Any]) -> None:
        latest = events.defer("fields", "traceback", "history", "original_fields").order_by("-pk")[
            : options["limit"] or LIMIT
        ]
        if options["json"]:
            names = "event_id", "event_name", "consumer_group", "attempts", "exception", "place", "error"
            found = [{name: getattr(event, name) for name in names} for event in latest]
            write_json(self.stdout, found)
            return
        if (count := events.count()) > len(latest):
            self.stderr.write(f"The latest {len(latest)} of {count}; --limit N shows more.")
        rows = table("event id", "event", "group", "state", "attempts", "failed at", "error", right=("attempts",))
        for event in latest:
            state = "dead letter" if event.is_dead_letter else "retrying"
            error = event.error.partition("\n")[0][:80]
            at = _time(event.failed_at)
            rows.add_row(event.event_id, event.event_name, event.consumer_group, state, str(event.attempts), at, error)
        self.print(rows, "No failed events.")

    def handle_show(self, options: dict[str, Any]) -> None:
        for event in selection.find(options["id"], options):
            self.stdout.write(failures.as_json(event))
            self.stdout.write(f"\n{event.traceback}")
            for text in failures.obstacles(event, options["database"]):
                self.stdout.write(f"A retry can't succeed: {text}")
            for text in failures.warnings(event, options["database"]):
                self.stdout.write(f"Before a retry: {text}")

    def handle_retry(self, options: dict[str, Any]) -> None:
        events = selection.choose(options, "Retry")
        refused = selection.groups_without_listener(events)
        for group in refused:
            self.stderr.write(f"Not retried: this service has no listener for the consumer group {group}.")
        request = new_retry_request(options["database"], f"{current_user()} (lightbus_failed)")
        chosen = events.exclude(consumer_group__in=refused)
        count = selection.in_chunks(chosen, lambda chunk: chunk.request_retry(request))
        in_hand = chosen.filter(claimed_until__gt=timezone.now()).exclude(retry_request=request.pk)
        if left_out := in_hand.count():
            self.stderr.write(f"Left out, because they are being retried at this moment: {left_out}.")
        text = f"{count} events are due now; lightbus_listen retries them."
        if options["wait"] is None:
            self.report(options, text, retried=count, refused_groups=refused)
            return
        if not options["json"]:
            self.stdout.write(text)
        outcome = self.wait_for(options["database"], request.pk, options["wait"])
        names = "done", "failed_again", "to_come", "withdrawn"
        numbers = {name: getattr(outcome, name) for name in names}
        if options["json"]:
            write_json(self.stdout, {"retried": count, "refused_groups": refused, **numbers})
        is_done = outcome.done == count
        if not options["json"]:
            if not is_done:
                raise CommandError(outcome.text)
            self.stdout.write(outcome.text)
        elif not is_done:
            sys.exit(1)  # an error would be written as JSON, too

    def wait_for(self, using: str, key: int, seconds: float) -> RetryOutcome:
        """Return the outcome of a request once it is settled, or after some seconds."""
        end = time.monotonic() + seconds
        while True:
            started = time.monotonic()
            (outcome,) = read_outcomes(using, [key])
            now = time.monotonic()
            if outcome.is_settled or now >= end:
                return outcome
            # With many events a look takes the database long; it spends a fifth of the time on looks at most.
            time.sleep(min(max(POLL, 4 * (now - started)), end - now))

    def handle_discard(self, options: dict[str, Any]) -> None:
        by = f"{current_user()} (lightbus_failed)"
        events = selection.choose(options, "Discard")
        count = selection.in_chunks(events, lambda chunk: chunk.discard(by, options["reason"]))
        self.report(options, f"{count} events discarded.", discarded=count)

    def handle_export(self, options: dict[str, Any]) -> None:
        export = failures.as_json if options["format"] == "json" else failures.as_fixture
        first, *others = selection.find(options["id"], options)
        if others:
            found = ", ".join(f"{event.event_id} of {event.consumer_group}" for event in (first, *others[:9]))
            raise CommandError(f"There are several, use the whole id and --listener: {found}")
        self.stdout.write(export(first))

    def report(self, options: dict[str, Any], text: str, **values: Any) -> None:
        if options["json"]:
            write_json(self.stdout, values)
        else:
            self.stdout.write(text)

    def print(self, rows: Any, empty: str) -> None:
        if rows.rows:
            print_table(self.stdout, rows)
        else:
            self.stdout.write(empty)


def _time(moment: Any) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"
