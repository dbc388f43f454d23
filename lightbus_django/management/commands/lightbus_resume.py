from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error as DatabaseError

from lightbus_django.database.errors import one_line
from lightbus_django.exceptions import LightbusError
from lightbus_django.operating.pausing import resume


class Command(BaseCommand):
    help = "End the pause of a listener. It goes on with the events that it had before."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("listener", nargs="+", help="name of a listener, or of its consumer group")

    def handle(self, **options: Any) -> None:
        try:
            for name in options["listener"]:
                self.stdout.write(f"{name} goes on." if resume(name) else f"{name} is not paused.")
        except (LightbusError, DatabaseError) as error:
            raise CommandError(one_line(error)) from error
