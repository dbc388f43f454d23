from typing import Any

from django.core.management.base import CommandError, CommandParser

from lightbus_django.management.base import LightbusCommand
from lightbus_django.management.output import console, reporting_errors, table, write_json
from lightbus_django.operating.event_ids import FOUND, FoundIds, find_ids
from lightbus_django.operating.outcomes import Story
from lightbus_django.operating.story import tell


class Command(LightbusCommand):
    help = "Tell what happened to an event: where it was fired, who has handled it, who has not and why."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="id of an event, or its first characters")
        parser.add_argument("--payload", action="store_true", help="show the payload as well")
        parser.add_argument("--json", action="store_true", help="print JSON, with the payload")

    def handle(self, **options: Any) -> None:
        with reporting_errors(self.stdout, as_json=options["json"]):
            story = tell(options["id"])
            if story is None:
                found = find_ids(options["id"])
                if len(found.ids) != 1 or found.gaps:
                    self.show_ids(options["id"], found, as_json=options["json"])
                    return
                story = tell(found.ids[0])
            if story is None:
                raise CommandError(f"No record mentions the event {options['id']!r}.")
        if options["json"]:
            write_json(self.stdout, story)
        else:
            self.show(story, with_payload=options["payload"])

    def show_ids(self, text: str, found: FoundIds, *, as_json: bool) -> None:
        if not found.ids:
            problem = f"No record mentions an event whose id begins with {text!r}."
            raise CommandError("\n".join([problem, *found.gaps]))
        if as_json:
            write_json(self.stdout, found._asdict())
            return
        number = f"The latest {FOUND} events" if len(found.ids) == FOUND else "Events"
        self.stdout.write(f"{number} whose ids begin with {text!r}, the latest first:")
        for event_id in found.ids:
            self.stdout.write(event_id)
        for gap in found.gaps:
            self.stderr.write(gap)

    def show(self, story: Story, *, with_payload: bool) -> None:
        self.stdout.write(f"{story.name} {story.id}")
        self.stdout.write(story.origin)
        if story.published_at:
            self.stdout.write(f"Published at {story.published_at.astimezone():%Y-%m-%d %H:%M:%S}.")
        if with_payload:
            if story.payload is None:
                self.stdout.write("No record has the payload any more.")
            else:
                write_json(self.stdout, story.payload)
        rows = table("listener", "group", "state", "what is known")
        for outcome in story.outcomes:
            rows.add_row(outcome.listener or "(no listener here)", outcome.group, outcome.state, outcome.text)
        if rows.rows:
            console(self.stdout).print(rows)
        else:
            self.stdout.write("No listener of this service wants it, and no group of its stream is known.")
        for problem in story.problems:
            self.stderr.write(f"Not asked: {problem}")
